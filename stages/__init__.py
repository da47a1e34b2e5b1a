"""The seven rooms of weaksam and the ground floor they share.

Rooms (``cam prompt propose wsod pgt retrain wsis``) import from ``stages.core`` only; they meet
each other through files. See ``stages/README.md``.
"""
