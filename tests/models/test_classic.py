"""AlexNet and GoogLeNet in timm's registry behave as torchvision's and as timm models."""

from __future__ import annotations

import pytest
import timm
import torch
from torchvision.models import AlexNet, GoogLeNet

import hemlearn.models.classic  # noqa: F401 - registers them


def reference(name: str) -> torch.nn.Module:
    if name == "alexnet":
        return AlexNet().eval()
    model = GoogLeNet(aux_logits=True, transform_input=True, init_weights=True).eval()
    for module in model.modules():  # statistics that are not 0 and 1, as after training
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.01)
            module.running_var.uniform_(0.001, 0.01)
    return model


@pytest.mark.parametrize(("name", "width"), [("alexnet", 4096), ("googlenet", 1024)])
def test_same_numbers_as_torchvision_from_its_state_dict(name, width):
    theirs = reference(name)
    state = theirs.state_dict()
    assert any(key.startswith("aux1.") for key in state) == (name == "googlenet")
    ours = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": state}).eval()
    x = torch.rand(2, 3, 128, 128)

    def normalised(mean, std):
        return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    record = timm.models.get_pretrained_cfg(name)
    with torch.no_grad():
        # torchvision expects ImageNet statistics; ours the statistics in its own record.
        wanted = theirs(normalised((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        got = ours(normalised(record.mean, record.std))
        scale = float(wanted.std())
        assert scale > 1e-4, "a comparison of constants would prove nothing"
        torch.testing.assert_close(got / scale, wanted / scale, rtol=0, atol=1e-3)
        features = ours.forward_features(x)
        assert ours.forward_head(features, pre_logits=True).shape == (2, width)


@pytest.mark.parametrize("name", ["alexnet", "googlenet"])
def test_timm_interface(name):
    model = timm.create_model(name, num_classes=7, in_chans=2).eval()
    x = torch.rand(1, 2, 64, 64)
    with torch.no_grad():
        assert model(x).shape == (1, 7)
        assert model.get_classifier().out_features == 7
        model.reset_classifier(3)
        assert model(x).shape == (1, 3)
        model.reset_classifier(0)
        assert model(x).shape == (1, model.head_hidden_size)
        model.reset_classifier(0, global_pool="")
        assert model(x).ndim == 4
        with pytest.raises(ValueError, match="global_pool=''"):
            model.reset_classifier(2)
    with pytest.raises(ValueError, match="global_pool='max'"):
        timm.create_model(name, global_pool="max")
    model.set_grad_checkpointing(False)
    with pytest.raises(ValueError, match="checkpointing"):
        model.set_grad_checkpointing(True)
    assert name in timm.list_models("*net")
    assert timm.is_model_pretrained(f"{name}.tv_in1k")


def test_googlenet_has_no_auxiliary_outputs_in_training():
    model = timm.create_model("googlenet", num_classes=2).train()
    assert isinstance(model(torch.rand(2, 3, 64, 64)), torch.Tensor)
    assert not [name for name, _ in model.named_parameters() if name.startswith("aux")]
