"""kan.py: splines and layer against pykan and scipy, grids that keep the curves, formulas found."""

import math

import numpy as np
import pytest
import torch
from house import call, load, mistake

mod = load("basics/kan.py")
PATH = mod.Path(mod.__file__)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def layer(G=5, n_in=3, n_out=2, seed=0):
    """With nothing at its starting value, and a grid of its own for every input."""
    torch.manual_seed(seed)
    made = mod.KANLayer(n_in, n_out, G).double()
    for part in made.parameters():
        torch.nn.init.normal_(part)
    h, low = 0.1 + torch.rand(n_in, 1).double(), torch.randn(n_in, 1).double()
    made.grid = low + h * torch.arange(-3, G + 4)  # even to the last digit, unlike a float32 one
    return made


def inputs(made, share=0.9):
    """Uniform over this share of each grid, the three outer knots of either side included."""
    low, high = made.grid[:, 0], made.grid[:, -1]
    return (low + high) / 2 + (torch.rand(200, len(low)).double() - 0.5) * share * (high - low)


# --- splines -------------------------------------------------------------------------------------
def by_scipy(x, grid):
    from scipy.interpolate import BSpline

    columns = []
    for i, knots in enumerate(grid.numpy()):
        each = [BSpline.basis_element(knots[j : j + 5], False) for j in range(len(knots) - 4)]
        columns.append(np.stack([np.nan_to_num(b(x[:, i].numpy())) for b in each], 1))
    return torch.from_numpy(np.stack(columns, 1))


@pytest.mark.parametrize("G", [1, 2, 5, 20])
def test_bases_are_scipys_and_pykans(G):
    spline = pytest.importorskip("kan.spline")
    grid = layer(G).grid
    x = inputs(layer(G), share=1.2)  # outside the grid, too
    found = mod.bases(x, grid)
    assert found.shape == (200, 3, G + 3)
    assert (found - by_scipy(x, grid)).abs().max() < 1e-11
    assert (found - spline.B_batch(x, grid, k=3)).abs().max() < 1e-11
    assert (mod.bases(x.float(), grid.float()) - found).abs().max() < 1e-4


def test_bases_sum_to_one_on_the_grid_alone():
    made = mod.KANLayer(1, 1, 5).double()
    inside = torch.linspace(-1, 1, 101).double()[:, None]  # both end points belong to it
    assert (mod.bases(inside, made.grid).sum(2) - 1).abs().max() < 1e-6
    outside = mod.bases(torch.tensor([[1.3], [2.3]]).double(), made.grid).sum(2)
    assert outside[0].item() == pytest.approx(0.93, abs=0.01) and outside[1].item() == 0


def test_wrong_spline_is_seen(monkeypatch):
    relu = torch.Tensor.relu
    monkeypatch.setattr(torch.Tensor, "relu", lambda a: relu(a) * 1.001)
    grid = layer().grid
    x = inputs(layer())
    assert (mod.bases(x, grid) - by_scipy(x, grid)).abs().max() > 1e-4


# --- layer ---------------------------------------------------------------------------------------
def pykan_of(made):
    kan = pytest.importorskip("kan")
    n_in, n_out, n_splines = made.coef.shape
    peer = kan.KANLayer(n_in, n_out, num=n_splines - 3, k=3).double()
    missing = peer.load_state_dict(made.state_dict(), strict=False)
    assert missing.missing_keys == ["mask"] and not missing.unexpected_keys  # all ones
    return peer


def pykan_gaps(made):
    """Largest differences of the outputs and of the gradients of x and all parameters."""
    peer, x = pykan_of(layer()), inputs(made).requires_grad_()
    outs, grads = [], []
    for each, y in ((made, made(x)), (peer, peer(x)[0])):
        names = [each.coef, each.scale_base, each.scale_sp]
        outs.append(y)
        grads.append(torch.autograd.grad(y, [x, *names], torch.ones_like(y).cumsum(0)))
    gaps = [(a - b).abs().max() / b.abs().max() for a, b in [outs, *zip(*grads, strict=True)]]
    return [gap.item() for gap in gaps]


def test_layer_is_pykans_forward_and_backward():
    assert max(pykan_gaps(layer())) < 1e-9


@pytest.mark.parametrize("key", ["coef", "scale_base", "scale_sp", "grid"])
def test_other_weights_are_seen(key):
    made = layer()
    made.get_parameter(key).data.add_(1e-3) if key != "grid" else made.grid.add_(1e-3)
    assert pykan_gaps(made)[0] > 1e-6


def networks():
    """One of ours and pykan's with its weights."""
    kan = pytest.importorskip("kan")
    torch.manual_seed(0)
    model = mod.KAN([2, 5, 1], 5).double()
    for made in model:
        made.grid = (torch.arange(-3, 9).double() * 0.4 - 1).repeat(len(made.grid), 1)
    peer = kan.KAN([2, 5, 1], grid=5, k=3, auto_save=False, symbolic_enabled=False).double()
    for ours, theirs in zip(model, peer.act_fun, strict=True):
        theirs.load_state_dict(ours.state_dict(), strict=False)
    return model, peer


def test_network_is_pykans():
    model, peer = networks()
    x = 2 * torch.rand(100, 2).double() - 1
    assert (model(x) - peer(x)).abs().max() < 1e-9


def learned(model, lr=0.03):
    """RMSE on unseen points after 60 steps of Adam."""
    widths, formula = mod.SETS["exp"]
    x, z = (
        2 * torch.rand(2, 1000, widths[0], generator=torch.Generator().manual_seed(0)).double() - 1
    )
    names = "coef", "scale_base", "scale_sp"
    parts = [p for name, p in model.named_parameters() if name.endswith(names)]
    optimizer = torch.optim.Adam(parts, lr=lr)
    for _ in range(60):
        optimizer.zero_grad()
        (model(x) - formula(x)).square().mean().backward()
        optimizer.step()
    return mod.evaluate(model, z, formula(z))["test_rmse"]


def test_as_accurate_as_pykan_step_for_step():
    model, peer = networks()
    ours, theirs = learned(model), learned(peer)
    assert ours == pytest.approx(theirs, rel=1e-6) and ours < 0.3
    assert learned(networks()[0], lr=0.033) != pytest.approx(theirs, rel=1e-3)


def test_edge_by_edge():
    made = layer()
    x = inputs(made)
    assert (made.curves(x).sum(1) - made(x)).abs().max() < 1e-12
    i, o, want = 2, 1, 0
    for j, b in enumerate(mod.bases(x, made.grid)[:, i].T):
        want = want + made.scale_sp[i, o] * made.coef[i, o, j] * b
    want = want + made.scale_base[i, o] * x[:, i] * torch.sigmoid(x[:, i])
    assert (made.curves(x)[:, i, o] - want).abs().max() < 1e-12


# --- grids ---------------------------------------------------------------------------------------
def moved(made, x, G):
    before = made(x)
    made.regrid(x, G)
    return ((made(x) - before).abs().max() / before.abs().max()).item()


def fitted():
    """A layer whose grid spans its x already."""
    made = layer()
    x = inputs(made)
    made.regrid(x, 5)
    return made, x


def test_extension_keeps_the_function():
    """Where the new knots hold the old ones, nothing is lost; not even between the samples."""
    for G in (5, 10, 20):
        made, x = fitted()
        assert moved(made, x, G) < 1e-6, G
    made, x = fitted()
    between = x[:-1] + 0.3 * x.diff(dim=0)
    before = made(between)
    made.regrid(x, 10)
    assert (made(between) - before).abs().max() < 1e-4


def test_wrong_extension_is_seen(monkeypatch):
    made, x = fitted()
    solve = torch.linalg.solve
    monkeypatch.setattr(torch.linalg, "solve", lambda a, b: 1.001 * solve(a, b))
    assert moved(made, x, 10) > 1e-4
    monkeypatch.undo()
    made, x = fitted()
    assert moved(made, x, 2) > 1e-3  # too few splines for these curves


def test_grid_spans_the_activations():
    model = mod.KAN([2, 3, 1], 5)
    x = 3 * torch.rand(500, 2) + 4
    model.regrid(x, 7)
    for made in model:
        assert made.grid.shape == (x.shape[1], 14) and made.coef.shape[2] == 10
        assert torch.allclose(made.grid[:, 3], x.amin(0), atol=1e-3)
        assert torch.allclose(made.grid[:, -4], x.amax(0), atol=1e-3)
        x = made(x)


def test_hidden_samples_matter():
    """Samples in [-1, 1] for a layer that is used beyond: its outputs change."""
    made, x = fitted()
    before = made(x)
    made.regrid(2 * torch.rand(200, 3).double() - 1, 10)
    assert (made(x) - before).abs().max() > 0.1


def test_constant_input_and_empty_intervals_stay_finite():
    made = mod.KANLayer(2, 1, 5)
    x = torch.stack([torch.zeros(50), torch.cat([torch.zeros(25), torch.ones(25)])], 1)
    assert moved(made, x, 50) < 1e-3
    assert made.coef.isfinite().all()


def test_checkpoint_of_another_grid():
    model, other = mod.KAN([2, 2, 1], 5), mod.KAN([2, 2, 1], 5)
    x = torch.rand(100, 2)
    other.regrid(x, 12)
    before = other(x)
    params = [*model.parameters()]
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(x), before)
    assert all(a is b for a, b in zip(model.parameters(), params, strict=True))
    model[0].coef.data.zero_()
    assert torch.equal(other(x), before)  # nothing is shared


# --- symbols -------------------------------------------------------------------------------------
CURVES = {
    "": lambda x: 3 * x - 2,
    "square": lambda x: -0.5 * (1.3 * x + 0.4) ** 2 + 1,
    "exp": lambda x: 0.3 * torch.exp(-2 * x) + 5,
    "sin": lambda x: 2 * torch.sin(math.pi * x + 0.5) - 1,
}


@pytest.mark.parametrize("name", CURVES)
def test_symbol_is_found(name):
    x = torch.linspace(-1, 1, 100).double()
    y = CURVES[name](x)
    found, (a, b, c, d) = mod.snap(x, y)
    assert found == name
    assert (c * mod.SYMBOLS[name](a * x + b) + d - y).abs().max() < 1e-3
    wild, (a, b, c, d) = mod.snap(x, torch.sin(9 * x).abs())
    assert (c * mod.SYMBOLS[wild](a * x + b) + d - torch.sin(9 * x).abs()).abs().max() > 0.1


def test_formulas():
    x = torch.tensor([[0.5, -1.0]])
    assert mod.SETS["exp"][1](x).item() == pytest.approx(math.exp(2), rel=1e-6)
    assert mod.SETS["product"][1](x).item() == -0.5
    assert mod.SETS["bessel"][1](torch.zeros(1, 1)).item() == 1
    ones = torch.ones(1, 100)  # sin(pi / 2)^2 = 1, whose mean is raised to e
    assert mod.SETS["sum100"][1](ones).item() == pytest.approx(math.e, rel=1e-6)
    assert mod.SETS["sum100"][1](torch.cat([ones, 0 * ones], 0)).shape == (2, 1)
    x = torch.tensor([[0.5, 0.5, 1.0, 0.5**0.5]])  # sines of pi / 2 and 3 pi / 2
    assert mod.SETS["nested"][1](x).item() == pytest.approx(1, rel=1e-5)
    x[0, 2:] = torch.tensor([0.3, 0.2])
    by_hand = math.exp((1 + math.sin(0.13 * math.pi)) / 2)
    assert mod.SETS["nested"][1](x).item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("name, curves", [("sum100", 5), ("nested", 10), ("exp", 3)])
def test_picture_has_at_most_four_curves_a_layer(name, curves, monkeypatch, tmp_path):
    from matplotlib.figure import Figure

    drawn, plain = [], Figure.add_subplot
    monkeypatch.setattr(Figure, "add_subplot", lambda *a, **k: drawn.append(a) or plain(*a, **k))
    monkeypatch.setattr(mod, "snap", lambda x, y: ("", (0.0, 0.0, 0.0, 0.0)))
    torch.manual_seed(0)
    model, x = mod.KAN(mod.SETS[name][0], 3), torch.rand(20, mod.SETS[name][0][0])
    mod.read_formula(mod.parse_args(["--out", str(tmp_path)]), model, x, x, model(x).detach())
    assert len(drawn) == curves and (tmp_path / "splines.png").exists()


# --- the script ----------------------------------------------------------------------------------
def test_formula_is_wrong_without_the_right_symbol(monkeypatch):
    monkeypatch.delitem(mod.SYMBOLS, "sin")
    code, out, _ = call(PATH, "--smoke", "--n_steps", 500, "--device", "cpu")
    assert code == 1 and '"ok": false' in out


def test_grids_follow_each_other_and_resume_is_exact():
    argv = ["--device", "cpu", "--grid_interval", 3, "--sample_interval", 4, "--grids", 3, 3, 6, 9]
    for out, *n in (("whole", 11), ("parts", 5, 8, 11)):
        for at, steps in enumerate(n):
            more = ["--resume"] if at else []
            assert call(PATH, *argv, "--out", out, "--n_steps", steps, *more)[0] == 0
    whole, parts = (torch.load(f"{out}/last.pt")["model"] for out in ("whole", "parts"))
    assert whole["0.coef"].shape == (2, 1, 12)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert mod.Path("whole/splines.png").stat().st_size > 5000


def test_product_is_learned():
    argv = ["--dataset", "product", "--device", "cpu", "--n_steps", 600]
    code, out, _ = call(PATH, *argv)
    assert code == 0 and float(out.split("test_rmse ")[-1].split()[0]) < 0.03


def test_mistakes():
    mistake(PATH, "--grids", 0, about="--grids")
    mistake(PATH, "--dataset", "sin", about="--dataset")
