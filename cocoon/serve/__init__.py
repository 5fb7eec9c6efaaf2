"""Both ends of `/cocoon/session/1` without I/O, what is sealed in it, and OpenAI's request shapes. See the README."""
