"""LitServe with the batch settings of the others; its workers import this module."""

# Without postponed annotations: what serves these classes looks at the types of parameters.

import base64
from pathlib import Path

import litserve  # type: ignore[import-not-found]
import torch

from benchmarks.http_servers import COMPUTING, MAX_BATCH, WAIT_SECONDS, pixels_of
from orchestrator.serve.predictor import load_predictor


class Api(litserve.LitAPI):  # type: ignore[misc]
    """One network, uint8 pixels in and probabilities out."""

    folder = ""

    def setup(self, device: str) -> None:
        """Loads the network in the worker."""
        torch.set_num_threads(1)
        self.predictor = load_predictor(Path(self.folder))
        self.shape = self.predictor.card.shape

    def decode_request(self, request: dict[str, str]) -> bytes:
        """Takes the pixels out of the JSON body, the only kind that its servers read."""
        return base64.b64decode(request["image"])

    def batch(self, inputs: list[bytes]) -> torch.Tensor:
        """Joins the images."""
        return torch.cat([pixels_of(one, self.predictor) for one in inputs])

    def predict(self, pixels: torch.Tensor) -> torch.Tensor:
        """Answers a batch."""
        return self.predictor.predict(pixels)

    def unbatch(self, output: torch.Tensor) -> list[torch.Tensor]:
        """Cuts it into answers."""
        return list(output)

    def encode_response(self, output: torch.Tensor) -> list[float]:
        """One answer."""
        answer: list[float] = output.tolist()
        return answer


def run_litserve(port: int, folders: list[str]) -> None:
    """Serves until it is ended."""
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=WAIT_SECONDS, api_path="/infer")
    api.folder = folders[0]
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=COMPUTING)
    server.run(port=port, num_api_servers=1, log_level="error", generate_client_file=False)
