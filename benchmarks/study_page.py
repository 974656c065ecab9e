def write_page(runs, folder):
    pass
