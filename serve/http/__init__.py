"""HTTP: the protocols over the models. Knows requests and answers; the models know nothing of it."""
