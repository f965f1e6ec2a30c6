"""The commands that put a trained network to use, for every recipe: predict and export."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nasx._words import number_of
from nasx.cli import DONE, FAILED, BadInput, bad_input, check_counts, print_json
from nasx.pipeline.commands import CommandLine

if TYPE_CHECKING:
    from nasx.pipeline.exported import ExportedModel

FORMATS = ("safetensors", "onnx", "pt2")


class DeployCommands:
    """Adds the commands to a command line."""

    def __init__(self, line: CommandLine) -> None:
        self.line = line
        sub = line.add("predict", self.predict, "classes and probabilities of image files")
        sub.add_argument("source", type=Path, metavar="RUN", help="a run directory, or an exported network")
        sub.add_argument("images", type=Path, nargs="+", metavar="FILE|DIR", help="images, and folders of images")
        sub.add_argument("--top", type=int, default=3, help="classes to show of each image (default 3)")
        sub.add_argument("--batch-size", type=int, default=64, help="images of a batch (default 64)")

        sub = line.add("export", self.export, "write a network with its model card")
        sub.add_argument("source", type=Path, metavar="RUN", help="a run directory, or an exported or imported network")
        sub.add_argument(
            "--format",
            choices=FORMATS,
            default=FORMATS[0],
            help="safetensors for nasx and timm (default), onnx, or pt2 for torch alone",
        )
        sub.add_argument(
            "--preprocess",
            action="store_true",
            help="onnx: take uint8 images of any size; the graph prepares them",
        )
        sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")
        sub.add_argument("--force", action="store_true", help="overwrite what an export wrote before")

    def predict(self, options: argparse.Namespace) -> int:
        """Print the most probable classes of images; files that are no images are reported on standard error."""
        with bad_input():
            from nasx.data.broken import printable
            from nasx.data.walk import walk_images
            from nasx.pipeline.classifier import Classifier
            from nasx.pipeline.exported import open_model
            from nasx.pipeline.machine import Machine
            from nasx.train import pick_device

            check_counts({"--top": options.top, "--batch-size": options.batch_size})
            network = Classifier(open_model(options.source, self.line.recipe()))
            files: list[Path] = []
            for path in options.images:
                if not path.is_dir():
                    files.append(path)
                    continue
                found, skipped = walk_images(path)
                if not found:
                    raise BadInput(f"{printable(path)} holds no image; name a folder that does, or a file")
                files += found
                for remark in skipped.remarks():
                    print(f"{printable(path)}: {remark}", file=sys.stderr)
            network.to(pick_device(Machine.from_environment().device))
            predictions = network.predict_files(files, batch_size=options.batch_size)
        width = max(len(printable(path)) for path in files)
        images, broken, readable = [], [], 0
        for found_in_file in predictions:
            name = printable(found_in_file.path)
            if found_in_file.fault:
                broken.append({"file": name, "fault": found_in_file.fault})
                print(f"left out: {name}: {found_in_file.fault}", file=sys.stderr)
                continue
            readable += 1
            top = found_in_file.classes[: options.top]
            if options.json:
                ranked = [{"class": word, "probability": probability} for word, probability in top]
                images.append({"file": name, "predictions": ranked})
            else:
                print(
                    f"{name:<{width}}  {'  '.join(f'{printable(word)} {probability:.1%}' for word, probability in top)}"
                )
        if not readable:
            raise BadInput("none of the files can be read as an image")
        if options.json:
            print_json({"classes": list(network.classes), "images": images, "broken": broken})
        elif broken:
            left_out = "file that cannot be read is", "files that cannot be read are"
            print(f"{number_of(readable, 'image')}; {number_of(len(broken), *left_out)} left out", file=sys.stderr)
        return DONE

    def export(self, options: argparse.Namespace) -> int:
        """Write a run's network, or one that was exported or imported, in a format for use elsewhere."""
        if options.preprocess and options.format != "onnx":
            raise BadInput(f"--preprocess is of --format onnx, but got --format {options.format}; remove --preprocess")
        with bad_input():
            from nasx.pipeline.errors import ExportFailed
            from nasx.pipeline.export_formats import write_onnx, write_pt2, write_safetensors
            from nasx.pipeline.exported import open_model

            model = open_model(options.source, self.line.recipe())
            try:
                match options.format:
                    case "onnx":
                        files = write_onnx(model, options.out, preprocess=options.preprocess, force=options.force)
                    case "pt2":
                        files = write_pt2(model, options.out, force=options.force)
                    case _:
                        files = write_safetensors(model, options.out, force=options.force)
            except ExportFailed as error:
                print(f"error: {error}; choose another --format", file=sys.stderr)
                return FAILED
        return show_written(options, model, files)


def show_written(
    options: argparse.Namespace, model: "ExportedModel", files: Sequence[Path], remarks: Sequence[str] = ()
) -> int:
    """Say which files hold a network, and what it costs."""
    counts = model.counts()
    if options.json:
        document = {"files": [str(path) for path in files], "arch": dict(model.arch), **counts}
        print_json({**document, **({"remarks": list(remarks)} if remarks else {})})
        return DONE
    for remark in remarks:
        print(remark)
    print(f"{counts['params']:,} parameters, {counts['macs']:,} MACs")
    print(f"written: {', '.join(str(path) for path in files)}")
    return DONE
