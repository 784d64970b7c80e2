"""HTTP over the Unix socket: routes parse, call one service function, and return."""
