from tinyvit.data.digits import load_digits
NAMES = ("digits",)
def load(name, *, root=None, download=True):
    assert name == "digits"
    return load_digits()
