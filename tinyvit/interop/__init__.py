"""Models from elsewhere, and ours for elsewhere: formats of other libraries, read and written."""
