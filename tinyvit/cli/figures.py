"""`tinyvit figures`: what a trained model has learned and where it looks, one picture each, into its run's folder."""

from pathlib import Path

from tinyvit import data
from tinyvit.classifier import load
from tinyvit.cli.shared import caption, check_fits, complain, data_for, in_turn

AVERAGED = 128  # test images for the mean attention distance, as many as the paper takes


def run_figures(options):
    classifier = load(options.checkpoint, options.heads)
    for note in classifier.notes:
        complain(f"tinyvit figures: {note}")
    from tinyvit import interpret, viz

    if not interpret.has_attention(classifier.model):
        kind = classifier.model.config.kind
        return complain(f"tinyvit figures: the model must be a ViT or a hybrid; {options.checkpoint} is a {kind}", 1)
    failed = 0
    figures, parts = from_weights(classifier.model)
    try:
        if not classifier.knows_classes:
            raise data.DataError(f"{options.checkpoint} has no head")
        test = test_images(classifier, options.data)
    except data.DataError as error:
        if options.data:
            raise
        failed = complain(f"tinyvit figures: only what needs no images is drawn: {error}", 1)
    else:
        figures |= from_images(classifier, test, options.images, parts)
    path = Path(options.checkpoint)
    folder = Path(options.out or (path if path.is_dir() else path.parent) / "figures")
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        viz.save(figure, folder / name)
        print(folder / name)
    return failed


def test_images(classifier, asked):
    dataset = data_for(classifier, asked)
    check_fits(classifier, dataset)
    return dataset.test


def from_weights(model):
    """({name: figure}, the arrays that `viz.inside` takes) of what the model has; what it lacks is said."""
    from tinyvit import interpret, viz

    figures, parts = {}, []
    for name, array, draw in (
        ("filters.png", interpret.embedding_filters, lambda found: viz.filters(*found)),
        ("positions.png", interpret.position_similarity, viz.positions),
    ):
        try:
            parts.append(array(model))
        except ValueError as error:
            complain(f"tinyvit figures: no {name}: {error}")
        else:
            figures[name] = draw(parts[-1])
    return figures, parts


def from_images(classifier, test, count, parts):
    """{name: figure} of where the model looks in test images, `count` of them drawn one by one."""
    from tinyvit import interpret, viz

    model = classifier.model
    chosen = in_turn(test.labels, max(count, AVERAGED))
    images, labels = test.images[chosen], test.labels[chosen]
    seen = classifier.normalise(images)
    p = classifier.model.predict(seen[:count])
    captions = [caption(classifier.classes, *pair) for pair in zip(labels[:count], p, strict=True)]
    distances = interpret.attention_distance(model, seen[:AVERAGED])
    even = interpret.patch_distances(model.config).mean()
    figures = {
        "attention.png": viz.attention(images[:count], interpret.class_attention(model, seen[:count]), captions),
        "heads.png": viz.heads(images[0], interpret.head_attention(model, seen[:1])[0]),
        "distance.png": viz.attention_distance(distances, even),
    }
    if len(parts) == 2:
        (filters, _), similarity = parts
        figures["inside.png"] = viz.inside(filters, similarity, distances, even)
    return figures
