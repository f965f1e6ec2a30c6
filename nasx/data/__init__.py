"""Labelled images: the digits that ship with the library, image folders, splits, augmentation and batches."""

from nasx.data.augment import Augment
from nasx.data.batches import TrainBatches, channel_statistics, eval_batches
from nasx.data.broken import BrokenImage, BrokenImageError, BrokenImageWarning
from nasx.data.dataset import Dataset, ImageArray, Images, Photos
from nasx.data.decode import decode
from nasx.data.digits import load_digits
from nasx.data.folders import DataWarning, HeldOut, load_image_folder, load_test_folder
from nasx.data.hf import load_hf_folder
from nasx.data.leaks import copied_arrays, copied_files
from nasx.data.photos import PhotoSet
from nasx.data.readers import WorkerDied
from nasx.data.shards import load_shards
from nasx.data.sources import Files, Source
from nasx.data.splits import stratified_split

__all__ = [
    "Augment",
    "BrokenImage",
    "BrokenImageError",
    "BrokenImageWarning",
    "DataWarning",
    "Dataset",
    "Files",
    "HeldOut",
    "ImageArray",
    "Images",
    "PhotoSet",
    "Photos",
    "Source",
    "TrainBatches",
    "WorkerDied",
    "channel_statistics",
    "copied_arrays",
    "copied_files",
    "decode",
    "eval_batches",
    "load_digits",
    "load_hf_folder",
    "load_image_folder",
    "load_shards",
    "load_test_folder",
    "stratified_split",
]
