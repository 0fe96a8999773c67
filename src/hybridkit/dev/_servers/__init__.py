"""The servers of the stack on this machine, from a URL, a program, a container or a Python package."""
