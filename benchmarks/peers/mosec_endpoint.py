"""Mosec over onnxruntime: HTTP and batches of up to 32 in Rust. MODEL and WORKERS are in the environment."""

import os

import numpy as np
import onnxruntime
import orjson
from mosec import Server, Worker


class Predict(Worker):
    """Answers rows: their numbers by the name of the input."""

    def __init__(self):
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        self.inputs = {
            value.name: (np.int64 if value.type == "tensor(int64)" else np.float32, value.shape[1:])
            for value in self.session.get_inputs()
        }

    def deserialize(self, data):
        """Return one row as arrays."""
        rows = orjson.loads(data)["inputs"]
        return {name: np.array(rows[name], dtype).reshape(shape) for name, (dtype, shape) in self.inputs.items()}

    def forward(self, data):
        """Return one answer for each row."""
        return list(self.session.run(None, {name: np.stack([row[name] for row in data]) for name in self.inputs})[0])

    def serialize(self, data):
        """Return the answer's bytes."""
        return orjson.dumps({"output": data}, option=orjson.OPT_SERIALIZE_NUMPY)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Predict, num=int(os.environ["WORKERS"]), max_batch_size=32, max_wait_time=3)
    server.run()
