"""Both ends of paying by signed credit, without I/O. See the README."""
