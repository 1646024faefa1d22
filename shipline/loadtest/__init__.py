"""Load for a server, with its answers checked: how much it stands, and whether it is right under it.

`http` speaks to the server, `rows` knows what is asked and which answers are right, `loops` when it is asked, `results`
what came of it; `engine` puts them together, `show` shows it.
"""
