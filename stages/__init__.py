"""The stages of weaksam and the library that they share.

A stage (``cam prompt propose wsod pgt retrain wsis predict``) imports from ``stages.core`` only; stages meet each other
through files. See ``docs/architecture.md``.
"""
