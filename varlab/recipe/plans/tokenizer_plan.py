"""The training of a tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from varlab.config import Config
from varlab.data import BaseDataModule
from varlab.metrics.tokenizer_scores import ReconstructionScores, plain_psnr
from varlab.recipe.assembly import Build, build_tokenizer, check_image_size
from varlab.recipe.flops import FlopCounter
from varlab.recipe.init_weights import InitWeights
from varlab.recipe.objects import make, own_metrics
from varlab.recipe.parents import Parents
from varlab.recipe.plan import Plan, Scores, parameters
from varlab.recipe.plans import training_pictures
from varlab.recipe.preflight.data_facts import require_val_for_scores
from varlab.rng import Rng
from varlab.run.directory import RunDirectory
from varlab.run.trust import Trust
from varlab.tasks import TokenizerTask
from varlab.tokenizer import VQTokenizer
from varlab.types import without_padding

logger = logging.getLogger(__name__)

_SOME = 256  # held-out images whose mean colour is taken


def plan(config: Config, data: BaseDataModule, rng: Rng, directory: RunDirectory) -> Plan:
    """Plan a tokenizer as in VQGAN: reconstruction, perceptual and adversarial losses."""
    info = data.info
    parents = Parents.of(directory, info, Trust.of(config.get("trust")))
    init = InitWeights(config["init"], "tokenizer", parents.trust) if config.get("init") else None
    architecture = config["tokenizer"] if init is None else init.tokenizer(config.get("tokenizer_scales"))
    model = build_tokenizer(architecture, rng)
    if init is not None:
        init.load_tokenizer(model)
    key = "tokenizer.scales" if init is None else "tokenizer_scales"
    check_image_size(model, info.image_size, info.path, key)
    discriminator = None
    if config.get("discriminator") is not None:
        with rng.scope("init/discriminator"):
            discriminator = make(config["discriminator"])
    perceptual = parents.perceptual(config.get("perceptual"))
    if init is not None:
        parents.use("init", init.parent)
    task: TokenizerTask = make(config["task"])(
        tokenizer=model, discriminator=discriminator, perceptual=perceptual, rng=rng
    )
    count = FlopCounter()
    task.train_flops_per_image = count.trained(model, info.image_size)
    if discriminator is not None:
        task.disc_flops_per_image = task.gan.passes * count.trained(discriminator, info.image_size)
    split = training_pictures.shown_split(data)
    shown = min(config["pictures"]["count"], info.counts[split])
    return Plan(
        task=task,
        build=Build(tokenizer=architecture, image_size=list(info.image_size)).to_json()
        | {"scales": [list(scale) for scale in model.scales]},
        cost={
            "train_flops_per_image": task.train_flops_per_image,
            "disc_flops_per_image": task.disc_flops_per_image,
            "encode_flops_per_image": count.encode(model, info.image_size),
            "decode_flops_per_image": count.decode(model),
            "parameters": parameters(model),
            "tokens_per_image": sum(h * w for h, w in model.scales),
        }
        | count.note(),
        draw=lambda: {
            "reconstructions": training_pictures.reconstructions(model, data.images(split, torch.arange(shown)))
        },
        scores=_tokenizer_scores(config, data, task, model, parents),
        parents=parents.used,
        conclude=lambda values: _say_sharpness(values, data),
    )


def _say_sharpness(values: Mapping[str, float], data: BaseDataModule) -> Config:
    """Log the PSNR of held-out images beside that of their mean colour."""
    if "val/psnr" in values:
        some_N = torch.arange(min(_SOME, data.info.counts["val"]))
        plain = plain_psnr(data.images("val", some_N))
        logger.info("held-out PSNR %.1f dB (one colour for all images: %.1f dB)", values["val/psnr"], plain)
    return {}


def _tokenizer_scores(
    config: Config, data: BaseDataModule, task: TokenizerTask, model: VQTokenizer, parents: Parents
) -> Scores | None:
    """rFID during training, if it is asked for."""
    if config["scores"]["every"] is None:
        return None
    require_val_for_scores(data.info)
    extractor = parents.extractor(config["extractor"])

    def scores() -> dict[str, float]:
        loader = data.eval_loader("val", task.trainer.global_rank, task.trainer.world_size)
        batches = without_padding(task.stop_request.between(loader), task.device)
        own = own_metrics(config.get("metrics"))
        extract = extractor.to(task.device)
        values = ReconstructionScores(model, extractor=extract, perceptual=None, own=own).over(batches)
        return {name: value for name, value in values.items() if name == "rfid" or name in own.ranked(values)}

    return scores
