"""Labelled images: the digits that ship with the library, image folders, splits, augmentation and batches."""

from nasx.data.augment import Augment
from nasx.data.batches import TrainBatches, channel_statistics, eval_batches
from nasx.data.dataset import Dataset, ImageArray, Images, Photos
from nasx.data.decode import decode
from nasx.data.digits import load_digits
from nasx.data.faults import BrokenImage, BrokenImageError, BrokenImageWarning
from nasx.data.folders import ImageFiles, load_image_folder
from nasx.data.leaks import copied_arrays, copied_files
from nasx.data.readers import WorkerDied
from nasx.data.splits import stratified_split

__all__ = [
    "Augment",
    "BrokenImage",
    "BrokenImageError",
    "BrokenImageWarning",
    "Dataset",
    "ImageArray",
    "ImageFiles",
    "Images",
    "Photos",
    "TrainBatches",
    "WorkerDied",
    "channel_statistics",
    "copied_arrays",
    "copied_files",
    "decode",
    "eval_batches",
    "load_digits",
    "load_image_folder",
    "stratified_split",
]
