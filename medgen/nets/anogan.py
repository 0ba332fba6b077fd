"""A generator of normal images, the judge that taught it, and an encoder to its latents, as one network.

Source: Schlegl et al., "Unsupervised anomaly detection with generative adversarial networks to guide marker discovery",
IPMI 2017 (AnoGAN), and "f-AnoGAN: fast unsupervised anomaly detection with generative adversarial networks", Medical
Image Analysis 54:30, 2019, which adds the encoder.
"""

from torch import Tensor, nn


class AnoGan(nn.Module):
    """Holds the three networks of an AnoGAN; called, it returns the normal image that it takes its input for.

    Args:
        generator: maps latents `(B, L)` to images `(B, C, ...)`.
        judge: maps images to `(logits, features)`, finest first, as `medgen.nets.dcgan.ImageJudge` does.
        encoder: maps images to latents.
    """

    # A TorchScript export is what it takes an image for; the judge's spectral norms cannot be scripted, nor need be.
    __jit_ignored_attributes__ = ("judge",)

    def __init__(self, generator: nn.Module, judge: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.generator, self.judge, self.encoder = generator, judge, encoder

    def forward(self, image: Tensor) -> Tensor:
        """Returns the generator's image of what the encoder sees, `(B, C, ...)`."""
        normal: Tensor = self.generator(self.encoder(image))
        return normal

    def encode(self, image: Tensor) -> Tensor:
        """Returns latents `(B, L)`."""
        latent: Tensor = self.encoder(image)
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """Returns the images of latents."""
        image: Tensor = self.generator(latent)
        return image

    def features(self, image: Tensor) -> Tensor:
        """Returns the last feature map of the judge, `(B, F, ...)`: what it knows images by."""
        found: Tensor = self.judge(image)[1][-1]
        return found
