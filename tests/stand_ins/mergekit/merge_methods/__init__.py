"""The decorator of releases up to 0.1.4, which leaves the function as it is."""

from mergekit.merge_methods.easy_define import merge_method

__all__ = ["merge_method"]
