"""Messages, their one encoding, their bounds, and what is signed. See the README beside this file."""
