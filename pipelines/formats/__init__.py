"""Episodes of vectors in the files of other tools: one small reader for each format.

A reader has `units(root, options)`, which says what files are one piece of work, and `read(path, options,
task)`, which yields the episodes of a file, or a FormatError in place of one that cannot be used.
"""
