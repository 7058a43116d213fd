"""Anomaly scores."""

import math

import torch
from conftest import small_model

from farmer_ref.applications.anomalies import AnomalyScorer, compressed_length
from farmer_ref.data.sets import batches, load_split
from farmer_ref.evaluation.metrics import terms_over_draws


def test_the_likelihood_calls_blank_images_normal_and_the_others_do_not(digits):
    (train, labels), (validation, _) = (
        next(batches(load_split("digits", split, digits.config), limit, limit))
        for split, limit in (("train", 200), ("validation", 40))
    )
    scorer = AnomalyScorer(digits, train, labels, draws=1)
    assert torch.allclose(scorer._distance(scorer.mean[None], 4), torch.zeros(1, dtype=torch.float64))
    usual = scorer.scores(validation)
    blank = scorer.scores(torch.zeros(20, 1, 8, 8, dtype=torch.uint8))
    assert set(usual) == set(AnomalyScorer.SCORES)
    assert torch.allclose(scorer.features(validation, batch_size=7), scorer.features(validation), atol=1e-3)
    stranger = {name: float((blank[name][:, None] > usual[name]).double().mean()) for name in usual}
    assert stranger["likelihood"] < 0.4
    assert stranger["complexity"] > 0.95 and stranger["terms and complexity"] > 0.95


def test_features_and_scores_by_hand():
    """The terms of the likeliest class, averaged over draws; each score from them."""
    model = small_model().float()
    values = torch.randint(17, (12, 2, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scorer = AnomalyScorer(model, values, torch.arange(12) % 2, draws=3)  # of three classes, two
    rows = []
    for number, image in enumerate(values):
        options = {"draws": 3, "seed": 0, "numbers": [number]}
        both = [terms_over_draws(model, image[None], torch.tensor([c]), **options) for c in (0, 1)]
        likeliest = max(both, key=lambda terms: float(terms.total.mean()))
        rows.append([*(float(term.mean()) for term in likeliest), float(compressed_length(image[None]))])
    features = torch.tensor(rows, dtype=torch.float64)
    assert torch.allclose(scorer.features(values), features, atol=1e-3)
    log_p, found = features[:, :3].sum(1), scorer.scores(values)
    assert torch.allclose(found["likelihood"], -log_p, atol=1e-2)
    assert torch.allclose(found["typicality"], (log_p - log_p.mean()).abs(), atol=1e-2)
    assert torch.allclose(found["complexity"], -log_p - features[:, 3], atol=1e-2)


def test_a_compressed_length_is_in_nats_whatever_the_integers():
    values = torch.randint(256, (2, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    nats = 64 * 64 * math.log(256)  # of random bytes, which nothing compresses
    assert ((compressed_length(values) / nats - 1).abs() < 0.02).all()
    assert torch.equal(compressed_length(values.long()), compressed_length(values))


def test_a_term_that_never_changes_does_not_count():
    """Without a split the redundant term is 0 for every image."""
    model = small_model(informative=None, num_classes=0).float()
    values = torch.randint(17, (40, 2, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scorer = AnomalyScorer(model, values, torch.zeros(40, dtype=torch.long), draws=1)
    features = scorer.features(values)
    assert (features[:, 1] == 0).all()
    centred = features[:, [0, 2]] - features[:, [0, 2]].mean(0)
    squares = (centred * torch.linalg.solve(torch.cov(centred.T), centred.T).T).sum(1)
    assert torch.allclose(scorer.scores(values)["terms"], squares.sqrt())
