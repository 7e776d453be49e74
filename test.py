"""Evaluates a CGD checkpoint: Recall@K on the test split of a data set.

    python test.py --pretrained-model=checkpoints/CGD.CUB200.C_concat_MG.ResNet50v.dim1536
    python test.py --pretrained-model=runs/demo-MG-1/best
    python test.py --pretrained-model=runs/demo-MG-1/best --runtime=onnx
    python test.py --pretrained-model=released.onnx
    python test.py --pretrained-model=runs/demo-MG-1/best --html=neighbours.html

The flags of the authors' evaluation script keep their names and meanings. The defaults of data set, image size and
cropping come from the checkpoint's description (PREFIX.json), or from the released model if there is none.

--runtime onnx runs the network in onnxruntime, also on GPUs that MXNet does not support (Hopper, Blackwell). It needs
the packages onnx, to translate the checkpoint, and onnxruntime or onnxruntime-gpu. A model that python -m cgd.export
wrote without --with-preprocessing needs no onnx, and runs in onnxruntime without this flag. Images are prepared by
MXNet in any case.

--metrics prints MAP@R, R-precision and Precision@K, and --confidence how sure R@1 is: the bootstrap's 95 % interval,
with classes resampled. To compare two checkpoints, use the same queries:

    python test.py --pretrained-model=A --results=results-of-A.json
    python test.py --pretrained-model=B --confidence=results-of-A.json

--html writes a page for the browser: queries with their nearest neighbours, the places that make them alike, the most
confused classes and a scatter plot. It is one file, which holds thumbnails of the pictures and loads nothing.

The training split is not needed. --train-txt is used for the table of classes and images only. --save-embeddings
writes these arrays, with a row for each image of the test split and of its gallery; numpy.load reads them:

    embeddings    (N, dim) float32, rows of length 1
    identities    classes, renumbered from 0
    class_ids     classes, as numbered in the data set's files
    class_names   names of the classes, "" if the data set has none
    gallery       true for an image of the gallery, false for a query
    image_ids     images, as numbered in the data set's files
    boxes         (N, 4) x, y, w, h; 0, 0, 0, 0 for a whole image
    paths         files of the images
"""

import argparse
import sys

from cgd.data import flags
from cgd.gallery import page
from cgd.network import descriptions
from cgd.network.options import DTYPES
from cgd.retrieval import metrics, outputs
from cgd.system import errors, files
from cgd.system.errors import InputError


def arguments():
    parser = errors.Parser(
        usage="%(prog)s --pretrained-model=PREFIX [flags]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    help_ = "the checkpoint: its path up to -symbol.json; or FILE.onnx, written by python -m cgd.export"
    add("--pretrained-model", required=True, metavar="PREFIX", help=help_)
    flags.add_data_flags(parser, "the checkpoint's own, else cub200", "as the checkpoint was trained")
    for side in ("width", "height"):
        help_ = f"input {side} (default: the checkpoint's, 224 for the released one)"
        add(f"--image-{side}", type=flags.whole(1), metavar="N", help=help_)
    add = parser.add_argument_group("device").add_argument
    flags.add_device_flags(add)
    help_ = "precision of the convolutions on a CPU (default: float32); for int8 see python -m cgd.quantize --help"
    add("--dtype", choices=DTYPES, default="float32", help=help_)
    add = parser.add_argument_group("output").add_argument
    help_ = "also evaluate each pooled vector, before its Dense layer; each computes all images once more"
    add("--pooled", action="store_true", help=help_)
    add("--save-embeddings", metavar="FILE.npz", help="save descriptors, class and image ids, names, boxes, paths")
    help_ = "also print these, separated by commas: map@r, r-precision, precision@K"
    add("--metrics", type=metrics.parse, default=(), metavar="NAME,...", help=help_)
    help_ = "print the 95 %% interval of R@1; with a file of --results, also that of the difference to it"
    add("--confidence", nargs="?", const=True, metavar="FILE.json", help=help_)
    add("--results", metavar="FILE.json", help="save the recalls, rates, and R@1 of each class, the worst first")
    add("--html", metavar="FILE.html", help="write a page of queries and their nearest neighbours")
    help_ = f"the most queries on the page, an even sample of the classes (default: {page.MOST_QUERIES})"
    add("--html-queries", type=flags.whole(1), metavar="N", help=help_)
    help_ = "let the page refer to the image files, by relative addresses, instead of holding thumbnails"
    add("--link-images", action="store_true", help=help_)
    options = parser.parse_args()
    options.runtime = descriptions.choose_runtime(options.pretrained_model, options.runtime, options.dtype)
    if options.pooled and descriptions.is_onnx(options.pretrained_model):
        raise InputError("--pooled: an ONNX file has no pooled vectors; give its checkpoint, with --runtime onnx")
    if not options.html and (options.html_queries or options.link_images):
        raise InputError("--html-queries and --link-images: expected with --html FILE.html")
    check_outputs(options)
    if isinstance(options.confidence, str):
        options.confidence = outputs.read_hits(options.confidence)
    return options


def check_outputs(options):
    """Raises InputError for a file that cannot be written, or that would replace the checkpoint's description."""
    inputs = [options.pretrained_model + ending for ending in descriptions.FILES]
    if isinstance(options.confidence, str):
        inputs.append(options.confidence)
    for flag, file, ending in (
        ("--save-embeddings", options.save_embeddings, ".npz"),
        ("--results", options.results, ".json"),
        ("--html", options.html, ".html"),
    ):
        if file:
            files.check_output(flag, file, (ending,), inputs)


def warn_of_another_crop(cropped, options, description):
    """Warns if images are cropped differently from training, or if given boxes are not used."""
    if cropped != description["cropped"]:
        trained, tested = ("cropped", "whole") if description["cropped"] else ("whole", "cropped")
        unless = "" if cropped else ", unless they are crops already"
        text = f"trained on {trained} images and is tested on {tested} ones; expect a lower recall{unless}"
        print(f"warning: this network was {text}", file=sys.stderr)
    elif options.bbox_txt and options.cropped is None and not cropped:
        print(
            "warning: --bbox-txt is not used, because the network was trained on whole images; --cropped uses it",
            file=sys.stderr,
        )


def image_size(options, description):
    """(width, height), with a warning where the command differs from the checkpoint's description."""
    trained = (description["image_width"], description["image_height"])
    size = (options.image_width or trained[0], options.image_height or trained[1])
    if size != trained:
        print("warning: trained at {} x {} pixels, tested at {} x {}".format(*trained, *size), file=sys.stderr)
    return size


def main():
    options = arguments()
    description = descriptions.read(options.pretrained_model)
    name = options.dataset or description["dataset"]
    dataset = flags.load_dataset(options, name, cropped=description["cropped"], need_training=False)
    cropped = dataset.test[0].box is not None
    warn_of_another_crop(cropped, options, description)
    if isinstance(options.confidence, tuple) and not options.skip_unreadable:
        # now, not after the evaluation
        outputs.check_same_images(options.confidence, dataset, dataset.test, dataset.gallery)
    size = image_size(options, description)

    # Not before: these import MXNet, which takes far longer than all the above.
    from cgd.data import loader
    from cgd.gallery import report as gallery_page
    from cgd.network import runtimes
    from cgd.retrieval import evaluation
    from cgd.system import environment, machine

    preprocessing = evaluation.Preprocessing(size, description["mean"], description["std"])
    unreadable = loader.Unreadable(options.skip_unreadable)
    evaluate = evaluation.Evaluator(dataset, preprocessing, options.batch_size, options.num_workers, unreadable)
    checkpoint, ctx, runtime = runtimes.open_network(options.pretrained_model, options.runtime, options.gpu)
    dtype = "float32" if options.runtime == "onnx" else checkpoint.running_dtype(ctx, options.dtype)
    if dtype == "bfloat16" and not machine.computes_bfloat16():
        print("warning: bfloat16 can be slower than float32: this CPU has no avx512_bf16", file=sys.stderr)
    others = checkpoint.pooled() if options.pooled else {}
    smaller = f"try --batch-size {max(1, options.batch_size // 2)}"
    with environment.memory_for(smaller), environment.large_enough(size):
        result = evaluate(checkpoint.graph(ctx, size, options.dtype), ctx)
    print(
        "{:.1f} images/s, search {:.2f} s, {} images{}".format(
            result.images_per_second,
            result.search_seconds,
            "cropped" if cropped else "whole",
            f", {len(unreadable.reasons)} skipped as unreadable" if unreadable.reasons else "",
        )
    )
    if unreadable.reasons:  # without these, others may have no image to retrieve
        read = {"test": result.queries.records, "gallery": result.gallery and result.gallery.records}
        flags.warn_of_lonely(dataset._replace(**read))
    print(evaluation.report(dataset.ranks, result.recalls))
    measured = outputs.more_measures(options.metrics, result)
    for measure, value in measured.items():
        print(f"{measure}: {value:.4f}")
    if options.save_embeddings:
        outputs.save_embeddings(options.save_embeddings, result, dataset.classes)
    if options.results:  # here, and once more with the pooled vectors: what fails or is stopped later loses nothing
        outputs.save_results(options, result, {}, measured, dataset, cropped, dtype, runtime)
    if options.confidence is True:
        outputs.print_confidence(options.confidence, result, dataset)
    if options.html:
        facts = facts_of(options, result, dataset, size, cropped, dtype, runtime)
        shown = options.html_queries or page.MOST_QUERIES
        maps = similarity_maps(checkpoint, ctx, size, result, options.runtime)
        with environment.memory_for("give fewer --html-queries"):
            gallery_page.write(options.html, result, dataset, facts, shown, options.link_images, maps)
        print(f"written: {options.html}", file=sys.stderr)
    pooled = {}
    for letter, vectors in others.items():
        print(f"pooled vector {letter}: all images once more", file=sys.stderr)
        with environment.memory_for(smaller):
            pooled[letter] = evaluate(vectors.graph(ctx, size, options.dtype), ctx).recalls
        print(f"pooled vector {letter}:\n{evaluation.report(dataset.ranks, pooled[letter])}")
    if options.results and pooled:
        outputs.save_results(options, result, pooled, measured, dataset, cropped, dtype, runtime)
    if options.confidence and options.confidence is not True:  # last: it fails if other images were read
        outputs.print_confidence(options.confidence, result, dataset)


def similarity_maps(checkpoint, ctx, size, result, runtime):
    """The similarity maps of the page; None, with a note, for a network that has none."""
    from cgd.gallery import similarity

    try:
        if runtime != "mxnet":
            raise InputError(f"--runtime {runtime} does not give the last feature map")
        common = (result.gallery or result.queries).embeddings.mean(axis=0)
        return similarity.maps_of(checkpoint, ctx, common, size)
    except InputError as error:
        print(f"note: the page has no similarity maps: {error}", file=sys.stderr)
        return None


def facts_of(options, result, dataset, size, cropped, dtype, runtime):
    """What the page of --html says of the evaluation: a list of (name, value)."""
    return [
        ("checkpoint", options.pretrained_model),
        ("data set", dataset.name),
        ("queries", f"{len(result.queries.records):,}"),
        ("gallery", f"{len(result.gallery.records):,}" if result.gallery else "the other queries"),
        ("classes", f"{len(set(result.queries.identities.tolist())):,}"),
        ("descriptor", f"{result.queries.embeddings.shape[1]}-d"),
        ("input", "{} x {}, {}".format(*size, "cropped" if cropped else "whole images")),
        ("precision", dtype),
        ("runtime", f"{runtime['runtime']}, {runtime['device']}"),
    ]


if __name__ == "__main__":
    errors.run(main)
