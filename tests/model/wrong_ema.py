"""An average that is known to be wrong."""

from model import PowerFunctionEMA
from model.ema import gamma_of


class OnePowerLess(PowerFunctionEMA):
    """Known to be wrong: the exponent of the profile where that of its integral belongs."""

    def decay(self, images_seen: int, batch_images: int) -> float:
        return float((1 - batch_images / images_seen) ** gamma_of(self.sigma_rel))
