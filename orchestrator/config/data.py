"""The `data:` section: where samples come from, how they are split, loaded and augmented."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from orchestrator.config.base import Config, OneOf, Part, Seq, part

Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]

_SOURCES = "orchestrator.data.sources"
_AUGMENT = "orchestrator.data.augment"


class Source(Part):
    """A data set: samples with labels, and an official test split where it has one.

    Attributes:
        gives: what its samples are, `images` or `tokens`; a network must take the same.
    """

    gives: ClassVar[str] = "images"


@part("source", "fashion_mnist", build=f"{_SOURCES}.fashion_mnist:load")
class FashionMnist(Source):
    """Fashion-MNIST: 60,000 + 10,000 grey images of 28×28 in 10 classes (Xiao et al., 2017)."""

    type: Literal["fashion_mnist"] = "fashion_mnist"
    root: str | None = None
    """Folder with the four IDX files; by default the cache, Debian's package, then a download."""


@part("source", "digits", build=f"{_SOURCES}.digits:load")
class Digits(Source):
    """The 1,797 grey 8×8 digits that come with scikit-learn; a fifth is held out as test."""

    type: Literal["digits"] = "digits"


@part("source", "image_folder", build=f"{_SOURCES}.image_folder:load")
class ImageFolder(Source):
    """PNG or JPEG files in one folder per class, below `path` or `path/train` and `path/test`."""

    type: Literal["image_folder"] = "image_folder"
    path: str
    size: Annotated[int, Field(ge=1, le=4096)] = 224
    """Images are resized (shorter side) and centre-cropped to this many pixels."""
    channels: Literal[1, 3] = 3
    max_corrupt: Annotated[int, Field(ge=0)] = 10
    """Unreadable images that are counted, named and skipped before the run stops."""


@part("source", "parquet", build=f"{_SOURCES}.parquet:load")
class Parquet(Source):
    """Parquet files: one column of encoded images (bytes) or arrays, one of labels."""

    type: Literal["parquet"] = "parquet"
    path: str
    """A file, or a folder with `*.parquet` or `train/*.parquet` and `test/*.parquet`."""
    image: str = "image"
    label: str = "label"
    shape: Seq[int] | None = None
    """Shape (H, W) or (H, W, C) of flat arrays; encoded images carry theirs."""
    size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Encoded images are resized and centre-cropped to this many pixels."""
    channels: Literal[1, 3] = 3
    max_corrupt: Annotated[int, Field(ge=0)] = 10
    """Unreadable images that are counted, named and skipped before the run stops."""


@part("source", "synthetic", build=f"{_SOURCES}.synthetic:load")
class Synthetic(Source):
    """Generated images whose class can be learnt: one random prototype per class plus noise."""

    type: Literal["synthetic"] = "synthetic"
    samples: Annotated[int, Field(ge=1)] = 1024
    test_samples: Annotated[int, Field(ge=0)] = 256
    classes: Annotated[int, Field(ge=2)] = 10
    size: Annotated[int, Field(ge=1)] = 28
    channels: Annotated[int, Field(ge=1)] = 1
    noise: Annotated[float, Field(ge=0)] = 0.5
    """Standard deviation of the noise, in units of the prototypes' own."""
    seed: int = 0


Length = Annotated[int, Field(ge=3, le=65_536)]


class TokenizerConfig(Config):
    """How text becomes numbers. The vocabulary is what the train split knows."""

    level: Literal["character", "word"] = "word"
    """A token is one character, or a run of letters and digits, or one punctuation mark."""
    lowercase: bool = False
    min_count: Annotated[int, Field(ge=1)] = 1
    """Tokens that the train split has less often are unknown."""
    max_size: Annotated[int, Field(ge=5)] | None = None
    """Most tokens of the vocabulary, the four special ones included; the rarest are unknown."""


class TextSource(Source):
    """Texts as rows of token numbers."""

    gives: ClassVar[str] = "tokens"

    path: str
    length: Length = 128
    """Tokens of a row: `<bos>` and `<eos>` included where a row is one text."""
    tokenizer: TokenizerConfig = TokenizerConfig()


@part("source", "text_folder", build=f"{_SOURCES}.text_folder:load")
class TextFolder(TextSource):
    """UTF-8 files (*.txt) below `path`, or `path/train` and `path/test`.

    Files in one folder per class are samples of that class. Files that lie in the folder itself
    are one running text, in the order of their names, for a language model: it is cut into windows
    of `length` tokens, which go to the splits at random.
    """

    type: Literal["text_folder"] = "text_folder"


@part("source", "csv", build=f"{_SOURCES}.csv:load")
class Csv(TextSource):
    """A table of texts with labels, or of texts with target texts, its columns named in line one.

    `path` is a file, or a folder with `train.csv` and perhaps `test.csv`.
    """

    type: Literal["csv"] = "csv"
    text: str = "text"
    """The column of texts."""
    label: str | None = None
    """The column of labels, for classification."""
    target: str | None = None
    """The column of target texts, for a sequence-to-sequence model."""
    target_length: Length | None = None
    """Tokens of a target's row; by default `length`."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","

    @model_validator(mode="after")
    def _one_answer(self) -> Self:
        if (self.label is None) == (self.target is None):
            raise ValueError(
                "either `label` or `target` must name a column, but "
                f"got label={self.label}, target={self.target}"
            )
        if self.target is None and self.target_length is not None:
            raise ValueError("target_length is of use with `target` alone; remove it")
        return self


class SplitConfig(Config):
    """Which part of the source's training samples is held out. Follows its own seed only."""

    val: Fraction = 0.1
    """Share that steers training and search."""
    select: Fraction = 0.05
    """Share that chooses ensembles and fits calibration."""
    seed: int = 0
    stratify: bool = True
    """Keep each class's share the same in every split."""

    @model_validator(mode="after")
    def _leaves_samples_to_train(self) -> SplitConfig:
        if self.val + self.select >= 1:
            raise ValueError(
                "val + select must be below 1, "
                f"but got {self.val:g} + {self.select:g} = {self.val + self.select:g}"
            )
        return self


class Loader(Part):
    """How samples reach the model."""


@part("loader", "memory", build="orchestrator.data.memory:build_loader")
class MemoryLoader(Loader):
    """The whole data set as a memory-mapped, checksummed cache that all processes share."""

    type: Literal["memory"] = "memory"


@part("loader", "ray", build="orchestrator.launch.ray_data:RayDataLoader")
class RayLoader(Loader):
    """Ray Data streams and decodes Parquet or image files that are larger than memory."""

    type: Literal["ray"] = "ray"
    window: Annotated[int, Field(ge=1)] = 10_000
    """Samples that are shuffled together."""
    prefetch: Annotated[int, Field(ge=1)] = 2
    """Windows read ahead of training."""
    cpus: Annotated[float, Field(ge=0)] = 1
    """CPUs that the cluster keeps free for reading and decoding; 0 reads on those that train."""


class Augmentation(Part):
    """A random change of training samples, drawn anew for each sample."""


@part("augmentation", "crop", build=f"{_AUGMENT}:Crop")
class Crop(Augmentation):
    """Pads, then crops back to the input size at a random place (He et al., 2016)."""

    type: Literal["crop"] = "crop"
    padding: Annotated[int, Field(ge=1)] = 4
    mode: Literal["constant", "reflect"] = "constant"


@part("augmentation", "flip", build=f"{_AUGMENT}:Flip")
class Flip(Augmentation):
    """Mirrors left and right."""

    type: Literal["flip"] = "flip"
    p: Probability = 0.5


@part("augmentation", "affine", build=f"{_AUGMENT}:Affine")
class Affine(Augmentation):
    """Rotates, shifts, scales and shears in one bilinear resampling."""

    type: Literal["affine"] = "affine"
    degrees: Annotated[float, Field(ge=0, le=180)] = 0
    translate: Fraction = 0
    """Largest shift, as a share of the image's side."""
    scale: Seq[Annotated[float, Field(gt=0)]] = (1.0, 1.0)
    shear: Annotated[float, Field(ge=0, lt=90)] = 0
    """Largest shear, in degrees."""
    p: Probability = 1

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> Affine:
        if len(self.scale) != 2 or self.scale[0] > self.scale[1]:
            raise ValueError(f"scale must be [low, high] with low <= high, got {self.scale}")
        return self


@part("augmentation", "rotate", build=f"{_AUGMENT}:rotate")
class Rotate(Augmentation):
    """Rotates by a random angle."""

    type: Literal["rotate"] = "rotate"
    degrees: Annotated[float, Field(gt=0, le=180)] = 15
    p: Probability = 1


@part("augmentation", "color_jitter", build=f"{_AUGMENT}:ColorJitter")
class ColorJitter(Augmentation):
    """Changes brightness, contrast and (with three channels) saturation."""

    type: Literal["color_jitter"] = "color_jitter"
    brightness: Annotated[float, Field(ge=0, le=1)] = 0
    contrast: Annotated[float, Field(ge=0, le=1)] = 0
    saturation: Annotated[float, Field(ge=0, le=1)] = 0


@part("augmentation", "erase", build=f"{_AUGMENT}:Erase")
class Erase(Augmentation):
    """Replaces a random rectangle by the mean (random erasing; Zhong et al., 2020)."""

    type: Literal["erase"] = "erase"
    p: Probability = 0.5
    area: Seq[Annotated[float, Field(gt=0, le=1)]] = (0.02, 0.33)
    aspect: Annotated[float, Field(ge=1)] = 3.3


@part("augmentation", "randaugment", build=f"{_AUGMENT}:RandAugment")
class RandAugment(Augmentation):
    """`operations` random changes of one magnitude (Cubuk et al., 2020), drawn per sample."""

    type: Literal["randaugment"] = "randaugment"
    operations: Annotated[int, Field(ge=1, le=8)] = 2
    magnitude: Annotated[float, Field(ge=0, le=30)] = 9
    """0 to 30, in the paper's units of 31 bins."""


@part("augmentation", "mixup", build=f"{_AUGMENT}:Mixup")
class Mixup(Augmentation):
    """Blends pairs of samples and their labels (Zhang et al., 2018)."""

    type: Literal["mixup"] = "mixup"
    alpha: Annotated[float, Field(gt=0)] = 0.2
    p: Probability = 1


@part("augmentation", "cutmix", build=f"{_AUGMENT}:CutMix")
class CutMix(Augmentation):
    """Pastes a rectangle of another sample and mixes the labels by area (Yun et al., 2019)."""

    type: Literal["cutmix"] = "cutmix"
    alpha: Annotated[float, Field(gt=0)] = 1.0
    p: Probability = 1


class DataConfig(Config):
    """Where samples come from, how they are split, loaded and augmented."""

    source: Annotated[Part, OneOf("source")]
    split: SplitConfig = SplitConfig()
    loader: Annotated[Part, OneOf("loader")] = MemoryLoader()
    augment: Seq[Annotated[Part, OneOf("augmentation")]] = ()
