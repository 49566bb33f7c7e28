"""The commands of ``datapool``: read arguments, call the library, print what it returns.

Knows typer and the terminal. The work of a command is in the package that it calls; a module here has the commands of one
theme, and imports what they need when they run, so that ``datapool --help`` is quick.
"""
