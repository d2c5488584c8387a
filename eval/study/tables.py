"""stub"""


def write(study, output, show_it=False):
    pass
