"""An HTML report of one scored run; see `eval.page.__main__`."""
