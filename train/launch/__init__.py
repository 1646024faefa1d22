"""Several workers as Ray Train actors: `driver.launch` starts them. Only modules of this package import ray.

`options` and `lease` import none, so that a Trainer can be made without it.
"""
