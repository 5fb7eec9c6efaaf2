"""The local gateway: OpenAI's HTTP API in front of the client role. `server.open_gateway` starts it."""
