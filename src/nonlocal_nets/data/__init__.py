"""One LightningDataModule per data set. Each knows `num_classes`, `class_names` and `input_size` once constructed."""

from nonlocal_nets.data.base import CorruptFileError
from nonlocal_nets.data.charades import Charades
from nonlocal_nets.data.cifar import CIFAR
from nonlocal_nets.data.cued_clips import CuedClips
from nonlocal_nets.data.cued_digits import CuedDigits
from nonlocal_nets.data.elpv import ELPV
from nonlocal_nets.data.image_folder import ImageFolder
from nonlocal_nets.data.kinetics import Kinetics
from nonlocal_nets.data.listops import ListOps
from nonlocal_nets.data.speech_commands import SpeechCommands
from nonlocal_nets.data.text import Text
from nonlocal_nets.data.trained import MissingDataError
from nonlocal_nets.data.ucr import UCR
from nonlocal_nets.data.video_folder import VideoFolder

__all__ = [
    "CIFAR",
    "ELPV",
    "UCR",
    "Charades",
    "CorruptFileError",
    "CuedClips",
    "CuedDigits",
    "ImageFolder",
    "Kinetics",
    "ListOps",
    "MissingDataError",
    "SpeechCommands",
    "Text",
    "VideoFolder",
]
