"""ammd: distill a language model, export it to phone-ready files, prove and measure them.

This package is the ground floor: words that every stage shares (errors, artifacts, pinned
downloads, facts about the machine). It imports none of the stages.
"""

__version__ = "0.1.0"
