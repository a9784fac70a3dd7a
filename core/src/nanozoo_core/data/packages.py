def packages_corpus():
    raise NotImplementedError
