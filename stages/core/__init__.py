"""The library that the stages share; nothing here imports one of them."""
