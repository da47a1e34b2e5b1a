"""What a file from anywhere may hold: hypothesis strategies for settings, JSON and their damage."""

from __future__ import annotations

from hypothesis import strategies as st

WORDS = st.text(st.characters(codec="utf-8"), max_size=12)
NUMBERS = st.one_of(
    st.integers(-(10**30), 10**30), st.floats(), st.sampled_from([0, -1, 2**31, 2**63, 10**400, 1e308, -0.0])
)
JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)

YAML_PIECES = st.sampled_from([
    "cam:", "epochs:", "lr:", " 1", " .nan", " 2020-99-99", " !!timestamp xyz", " !!int 0xZZ", " !!binary '#'",
    " &a", " *a", " <<: *a", " [", " ]", " {", " }", ",", "\n", "\n  ", " ? ", " : ", " - ", " !!set {a}",
    " !!python/object/apply:os.system ['x']", " 0123", " 1:30", ' "\\ud800"', " null", " ~", " !!omap [a]", "\t",
    " |", " >", "---", "...", "%YAML 9.9", "#", "\x00", "'", '"', " !!bool maybe", " 9" * 30,
])  # fmt: skip
YAML_TEXTS = st.lists(YAML_PIECES, max_size=14).map("".join) | WORDS


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """The bytes of a file, cut, or with some of them changed, doubled or taken away."""

    def change(places: list[tuple[int, int, bytes]], length: int) -> bytes:
        changed = bytearray(content)
        for place, drop, insert in places:
            at = place % max(1, len(changed))
            changed[at : at + drop] = insert
        return bytes(changed[:length])

    edit = st.tuples(st.integers(0, 2**31), st.integers(0, 8), st.binary(max_size=8))
    return st.builds(change, st.lists(edit, max_size=5), st.integers(0, len(content) + 16))
