"""PyTorch's own samples (github.com/pytorch/examples and the tutorials), written as `.nn` programs in tests/pytorch: from the same weights and
data, three steps of training have the losses that PyTorch has.  Needs torch, which is a peer, never a dependency."""
from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from engram.datasets import Dataset
from engram.session import load_program, train_plan
from engram.train import Trainer
from engram.weights import fit

torch = pytest.importorskip("torch", reason="PyTorch is not installed: its samples are compared where it is")
from pytorch_peer import STEPS, learn, numbers  # noqa: E402

nn, F = torch.nn, torch.nn.functional
FOLDER = Path(__file__).parent / "pytorch"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def trainer(file, block, fields, models, order="shuffled"):
    """A train block that begins with the weights of PyTorch's models: {the block's name of a model: module}."""
    data = Dataset("sample", {k: np.ascontiguousarray(v.numpy()) for k, v in fields.items()}, order)
    plan = train_plan(load_program(FOLDER / f"{file}.nn"), block, given={"npz": data})
    out = Trainer(plan, "cpu", threads=1)
    out.initialise(0)
    prefix = len(models) > 1
    out.load_weights({f"{name}.{k}" if prefix else k: v.detach().numpy() for name, m in models.items() for k, v in m.state_dict().items()}, "PyTorch's")
    return out, data


def run(file, block, fields, models, order="shuffled"):
    """The first losses, and the trainer."""
    t, data = trainer(file, block, fields, models, order)
    result = t.run(data.fields, order=order, final=False)
    return np.array(result.first_losses[:STEPS]), t


def close(mine, theirs):
    theirs = np.array([float(v) for v in theirs])
    assert len(mine) == len(theirs) == STEPS and np.ptp(theirs) > 0, "the steps changed something"
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def same_state(t, module):
    """Parameters and running statistics after the steps, a model of one block."""
    layer = t.plan.models[0][1]
    want = fit(layer, {k: v.detach().numpy() for k, v in module.state_dict().items()}, "PyTorch's")
    have = t.values()
    for p, a in want.items():
        np.testing.assert_allclose(have[p], a, rtol=2e-3, atol=2e-4, err_msg=p)


# ---- word_language_model ----------------------------------------------------------------------------------------------

WORDS, WIDTH, CONTEXT, ROWS = 17, 8, 5, 4


class RNNModel(nn.Module):
    def __init__(self, kind, tied):
        super().__init__()
        self.encoder = nn.Embedding(WORDS, WIDTH)
        self.rnn = getattr(nn, kind)(WIDTH, WIDTH, 2)
        self.decoder = nn.Linear(WIDTH, WORDS)
        if tied:
            self.decoder.weight = self.encoder.weight

    def forward(self, tokens, state):
        ys, state = self.rnn(self.encoder(tokens), state)
        return self.decoder(ys), state


def corpus():
    """STEPS batches of ROWS rows; a sample goes on in the next, as batchify makes them: x[k] is row k // STEPS, step k % STEPS."""
    text = torch.randint(0, WORDS, (ROWS, STEPS * CONTEXT + 1))
    x = text[:, :-1].reshape(ROWS * STEPS, CONTEXT)
    return x, text[:, 1:].reshape(ROWS * STEPS, CONTEXT)


def detached(h):
    return tuple(v.detach() for v in h) if isinstance(h, tuple) else h.detach()


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_word_language_model(kind):
    model = RNNModel(kind, tied=kind == "LSTM")
    x, y = corpus()
    mine, _ = run("word_language_model", kind.lower(), {"x": x, "y": y}, {"model": model}, "streams")
    zero = torch.zeros(2, ROWS, WIDTH)
    state, theirs = (zero, zero) if kind == "LSTM" else zero, []
    optimiser = torch.optim.SGD(model.parameters(), 2.0)
    for k in range(STEPS):
        optimiser.zero_grad()
        logits, state = model(x[k::STEPS].T, detached(state))
        loss = F.cross_entropy(logits.reshape(-1, WORDS), y[k::STEPS].T.reshape(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimiser.step()
        theirs.append(loss.item())
    close(mine, theirs)


class TransformerModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_emb = nn.Embedding(WORDS, WIDTH)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.0, batch_first=True), 2)
        self.decoder = nn.Linear(WIDTH, WORDS)

    def forward(self, tokens):
        position = torch.arange(CONTEXT).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, WIDTH, 2) * (-math.log(10000.0) / WIDTH))
        pe = torch.zeros(CONTEXT, WIDTH)
        pe[:, 0::2], pe[:, 1::2] = torch.sin(position * div_term), torch.cos(position * div_term)
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        return self.decoder(self.encoder(self.input_emb(tokens) * math.sqrt(WIDTH) + pe, mask))


def test_word_language_model_transformer():
    model = TransformerModel()
    x, y = torch.randint(0, WORDS, (ROWS, CONTEXT)), torch.randint(0, WORDS, (ROWS, CONTEXT))
    mine, _ = run("word_language_model", "transformer", {"x": x, "y": y}, {"model": model})
    close(mine, learn(model, torch.optim.SGD(model.parameters(), 2.0), lambda: F.cross_entropy(model(x).reshape(-1, WORDS), y.reshape(-1)), clip=0.25))


# ---- images that are made ------------------------------------------------------------------------------------------------

class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc21, self.fc22, self.fc3, self.fc4 = nn.Linear(12, 8), nn.Linear(8, 3), nn.Linear(8, 3), nn.Linear(3, 8), nn.Linear(8, 12)

    def forward(self, x, eps):
        h1 = F.relu(self.fc1(x))
        mu, logvar = self.fc21(h1), self.fc22(h1)
        return torch.sigmoid(self.fc4(F.relu(self.fc3(mu + eps * torch.exp(0.5 * logvar))))), mu, logvar


def test_vae():
    model, x, eps = VAE(), numbers(16, 12, low=0, high=1), numbers(16, 3)

    def loss():
        recon, mu, logvar = model(x, eps)
        return F.binary_cross_entropy(recon, x, reduction="sum") - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    mine, t = run("vae", "vae", {"x": x, "eps": eps}, {"model": model})
    close(mine, learn(model, torch.optim.Adam(model.parameters()), loss))
    same_state(t, model)


class Main(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.main = nn.Sequential(*layers)

    def forward(self, x):
        return self.main(x)


def test_dcgan():
    g = Main(nn.ConvTranspose2d(5, 8, 4, 1, 0, bias=False), nn.BatchNorm2d(8), nn.ReLU(True), nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4),
             nn.ReLU(True), nn.ConvTranspose2d(4, 3, 4, 2, 1, bias=False), nn.Tanh())
    d = Main(nn.Conv2d(3, 4, 4, 2, 1, bias=False), nn.LeakyReLU(0.2), nn.Conv2d(4, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.2),
             nn.Conv2d(8, 1, 4, 1, 0, bias=False), nn.Sigmoid())
    x, z = numbers(8, 3, 16, 16), numbers(8, 5, 1, 1)
    mine, t = run("dcgan", "dcgan", {"x": x, "z": z}, {"g": g, "d": d})
    of_d, of_g = (torch.optim.Adam(m.parameters(), 2e-4, (0.5, 0.999)) for m in (d, g))
    theirs, ones = [], torch.ones(8)
    for _ in range(STEPS):
        d.zero_grad()
        fake = g(z)
        d_loss = F.binary_cross_entropy(d(x).view(-1), ones) + F.binary_cross_entropy(d(fake.detach()).view(-1), 0 * ones)
        d_loss.backward()
        of_d.step()
        g.zero_grad()
        g_loss = F.binary_cross_entropy(d(fake).view(-1), ones)
        g_loss.backward()
        of_g.step()
        theirs.append((d_loss + g_loss).item())
    close(mine, theirs)
    have = t.values()
    for name, theirs in (("g.main.layers.1.running_var", g.main[1].running_var), ("d.main.layers.3.running_mean", d.main[3].running_mean)):
        np.testing.assert_allclose(have[name], theirs.numpy(), rtol=1e-3, atol=1e-5, err_msg=name)


class SuperResolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 64, 5, 1, 2), nn.Conv2d(64, 64, 3, 1, 1)
        self.conv3, self.conv4 = nn.Conv2d(64, 32, 3, 1, 1), nn.Conv2d(32, 9, 3, 1, 1)

    def forward(self, x):
        return F.pixel_shuffle(self.conv4(F.relu(self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))))), 3)


def test_super_resolution():
    model, x, y = SuperResolution(), numbers(4, 1, 6, 6), numbers(4, 1, 18, 18)
    mine, t = run("super_resolution", "super_resolution", {"x": x, "y": y}, {"model": model})
    close(mine, learn(model, torch.optim.Adam(model.parameters(), 1e-3), lambda: F.mse_loss(model(x), y)))


class ConvLayer(nn.Module):
    def __init__(self, i, o, k, stride, upsample=None):
        super().__init__()
        self.upsample, self.reflection_pad, self.conv2d = upsample, nn.ReflectionPad2d(k // 2), nn.Conv2d(i, o, k, stride)

    def forward(self, x):
        x = F.interpolate(x, mode="nearest", scale_factor=self.upsample) if self.upsample else x
        return self.conv2d(self.reflection_pad(x))


class ResidualBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1, self.in1, self.conv2, self.in2 = ConvLayer(c, c, 3, 1), nn.InstanceNorm2d(c, affine=True), ConvLayer(c, c, 3, 1), nn.InstanceNorm2d(c, affine=True)

    def forward(self, x):
        return x + self.in2(self.conv2(F.relu(self.in1(self.conv1(x)))))


class TransformerNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.in1, self.conv2, self.in2 = ConvLayer(3, 4, 5, 1), nn.InstanceNorm2d(4, affine=True), ConvLayer(4, 8, 3, 2), nn.InstanceNorm2d(8, affine=True)
        self.res1, self.deconv1, self.in3, self.deconv2 = ResidualBlock(8), ConvLayer(8, 4, 3, 1, upsample=2), nn.InstanceNorm2d(4, affine=True), ConvLayer(4, 3, 5, 1)

    def forward(self, x):
        x = F.relu(self.in2(self.conv2(F.relu(self.in1(self.conv1(x))))))
        return self.deconv2(F.relu(self.in3(self.deconv1(self.res1(x)))))


def test_neural_style():
    model, x, style = TransformerNet(), numbers(2, 3, 8, 10, low=0, high=1), numbers(2, 3, 8, 10, low=0, high=1)

    def gram(v):
        f = v.flatten(2)
        return f @ f.transpose(1, 2) / (v.shape[1] * v.shape[2] * v.shape[3])

    def loss():
        y = model(x)
        variation = (y[..., 1:] - y[..., :-1]).abs().mean() + (y[..., 1:, :] - y[..., :-1, :]).abs().mean()
        return F.mse_loss(y, x) + 10 * F.mse_loss(gram(y), gram(style)) + 0.1 * variation
    mine, _ = run("neural_style", "neural_style", {"x": x, "style": style}, {"model": model})
    close(mine, learn(model, torch.optim.Adam(model.parameters(), 1e-3), loss))


# ---- images that are recognised ------------------------------------------------------------------------------------------

class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.cls, self.positions = nn.Parameter(0.02 * torch.randn(1, 1, 8)), nn.Parameter(0.02 * torch.randn(1, 5, 8))
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True), 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        words = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.encoder(torch.cat([self.cls.expand(len(x), -1, -1), words], 1) + self.positions)[:, 0])


def test_vision_transformer_with_label_smoothing():
    model, x, y = ViT(), numbers(8, 3, 8, 8), torch.randint(0, 5, (8,))
    mine, t = run("vit", "vit", {"x": x, "y": y}, {"model": model})
    close(mine, learn(model, torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.05), lambda: F.cross_entropy(model(x), y, label_smoothing=0.1)))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(1, 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, 1))

    def once(self, x):
        return F.relu(self.bn(self.conv(x))).flatten(1)

    def forward(self, a, b):
        return torch.sigmoid(self.fc(torch.cat([self.once(a), self.once(b)], 1)))[:, 0]


def test_siamese_network():
    model, a, b, y = Siamese(), numbers(8, 1, 8, 8), numbers(8, 1, 8, 8), torch.randint(0, 2, (8,)).float()
    mine, t = run("siamese", "siamese", {"a": a, "b": b, "y": y}, {"model": model})
    optimiser = torch.optim.Adadelta(model.parameters(), 1.0)
    close(mine, learn(model, optimiser, lambda: F.binary_cross_entropy(model(a, b), y), after=torch.optim.lr_scheduler.StepLR(optimiser, 1, 0.7)))
    same_state(t, model)                                              # both branches' running statistics among it


class BasicBlock(nn.Module):
    def __init__(self, i, o, stride=1):
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)) if stride != 1 or i != o else None

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.layer1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Sequential(BasicBlock(4, 4))
        self.layer2, self.fc = nn.Sequential(BasicBlock(4, 8, 2)), nn.Linear(8, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.fc(F.adaptive_avg_pool2d(self.layer2(self.layer1(x)), 1).flatten(1))


def test_resnet_block_in_training_and_after():
    model, x, y = ResNet(), numbers(8, 3, 9, 9), torch.randint(0, 5, (8,))
    mine, t = run("resnet", "resnet", {"x": x, "y": y}, {"model": model})
    close(mine, learn(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4), lambda: F.cross_entropy(model(x), y)))
    same_state(t, model)
    model.eval()
    now = t.measure({"x": x.numpy(), "y": y.numpy()})["loss_now"]
    np.testing.assert_allclose(now, F.cross_entropy(model(x), y).item(), rtol=1e-3)


class Mnist(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc1, self.fc2 = nn.Conv2d(1, 32, 3, 1), nn.Conv2d(32, 64, 3, 1), nn.Linear(256, 128), nn.Linear(128, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2).flatten(1)
        return F.log_softmax(self.fc2(F.relu(self.fc1(x))), 1)


def test_mnist():
    model, x, y = Mnist(), numbers(8, 1, 8, 8), torch.randint(0, 10, (8,))
    mine, _ = run("mnist", "mnist", {"x": x, "y": y}, {"model": model})
    optimiser = torch.optim.Adadelta(model.parameters(), 0.5)
    close(mine, learn(model, optimiser, lambda: F.nll_loss(model(x), y), after=torch.optim.lr_scheduler.StepLR(optimiser, 1, 0.7)))
    t, data = trainer("mnist", "dropped", {"x": x, "y": y}, {"model": model})
    assert t.run(data.fields).final["accuracy"] == 1, "with dropout it learns eight images by heart"


# ---- sequences -----------------------------------------------------------------------------------------------------------

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.gru = nn.Embedding(13, 8), nn.GRU(8, 8, batch_first=True)

    def forward(self, x):
        return self.gru(self.embedding(x))


class BahdanauAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.Wa, self.Ua, self.Va = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, query, keys):
        weights = F.softmax(self.Va(torch.tanh(self.Wa(query) + self.Ua(keys))).squeeze(2).unsqueeze(1), dim=-1)
        return torch.bmm(weights, keys)


class AttnDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.attention, self.gru, self.out = nn.Embedding(11, 8), BahdanauAttention(), nn.GRU(16, 8, batch_first=True), nn.Linear(8, 11)

    def forward(self, keys, hidden, target):
        word, out = torch.zeros(len(keys), 1, dtype=torch.long), []
        for i in range(target.shape[1]):
            context = self.attention(hidden.permute(1, 0, 2), keys)
            y, hidden = self.gru(torch.cat((self.embedding(word), context), dim=2), hidden)
            out.append(self.out(y))
            word = target[:, i].unsqueeze(1)
        return F.log_softmax(torch.cat(out, dim=1), dim=-1)


def test_translation_with_attention():
    encoder, decoder = Encoder(), AttnDecoder()
    x, y = torch.randint(0, 13, (6, 7)), torch.randint(0, 11, (6, 5))
    cell = AttnDecoder()
    cell.gru = nn.GRUCell(16, 8)                                      # the names of a cell, as the program has one
    cell.load_state_dict({k.replace("_l0", ""): v for k, v in decoder.state_dict().items()})
    mine, _ = run("seq2seq", "seq2seq", {"x": x, "y": y}, {"encoder": encoder, "decoder": cell})
    both = nn.ModuleList([encoder, decoder])

    def loss():
        keys, hidden = encoder(x)
        return F.nll_loss(decoder(keys, hidden, y).reshape(-1, 11), y.reshape(-1))
    close(mine, learn(both, torch.optim.Adam(both.parameters(), 1e-2), loss))


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm1, self.lstm2, self.linear = nn.LSTMCell(1, 5), nn.LSTMCell(5, 5), nn.Linear(5, 1)

    def forward(self, x, future=0):
        out, (h1, c1, h2, c2) = [], torch.zeros(4, len(x), 5)
        for v in x.split(1, dim=1):
            h1, c1 = self.lstm1(v, (h1, c1))
            h2, c2 = self.lstm2(h1, (h2, c2))
            y = self.linear(h2)
            out.append(y)
        for _ in range(future):
            h1, c1 = self.lstm1(y, (h1, c1))
            h2, c2 = self.lstm2(h1, (h2, c2))
            y = self.linear(h2)
            out.append(y)
        return torch.cat(out, dim=1)


def test_time_sequence_prediction():
    model = Sequence()
    x = torch.sin(torch.arange(9) / 3 + numbers(4, 1, low=0, high=6))
    x, y = x[:, :-1].contiguous(), x[:, 1:].contiguous()
    with torch.no_grad():
        ahead = model(x, future=4).numpy()
    mine, t = run("time_sequence", "sequence", {"x": x, "y": y}, {"model": model})
    import engram as eg
    m = eg.Model(FOLDER / "time_sequence.nn", "Sequence", 5)
    for k, v in fit(m._instance, {k: v.numpy() for k, v in model.state_dict().items()}, "PyTorch's").items():
        m.parameters[k] = v
    np.testing.assert_allclose(m(x.numpy(), future=4), ahead, rtol=1e-4, atol=1e-5)
    close(mine, learn(model, torch.optim.Adam(model.parameters(), 0.01), lambda: F.mse_loss(model(x), y)))


# ---- graphs ---------------------------------------------------------------------------------------------------------------

class GraphConv(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.kernel, self.bias = nn.Parameter(torch.randn(i, o) * 0.3), nn.Parameter(torch.zeros(o))

    def forward(self, x, adj):
        return torch.spmm(adj, torch.mm(x, self.kernel)) + self.bias


class GCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.gc1, self.gc2 = GraphConv(6, 8), GraphConv(8, 3)

    def forward(self, x, adj):
        return F.log_softmax(self.gc2(F.relu(self.gc1(x, adj)), adj), dim=1)


class GraphAttention(nn.Module):
    def __init__(self, i, o, heads, concat):
        super().__init__()
        self.heads, self.d, self.concat = heads, o // heads if concat else o, concat
        self.W, self.a = nn.Parameter(torch.randn(i, heads * self.d) * 0.3), nn.Parameter(torch.randn(heads, 2 * self.d, 1) * 0.3)

    def forward(self, h, adj):
        v = torch.mm(h, self.W).view(len(h), self.heads, self.d).permute(1, 0, 2)
        e = F.leaky_relu(torch.matmul(v, self.a[:, :self.d]) + torch.matmul(v, self.a[:, self.d:]).mT, 0.2)
        y = torch.matmul(F.softmax(torch.where(adj > 0, e, -9e16 * torch.ones_like(e)), dim=-1), v)
        return y.permute(1, 0, 2).reshape(len(h), -1) if self.concat else y.mean(0)


class GAT(nn.Module):
    def __init__(self):
        super().__init__()
        self.gat1, self.gat2 = GraphAttention(6, 8, 4, True), GraphAttention(8, 3, 1, False)

    def forward(self, x, adj):
        return F.log_softmax(self.gat2(F.elu(self.gat1(x, adj)), adj), dim=1)


def graph(n=7):
    adj = (torch.rand(n, n) < 0.3).float()
    adj = ((adj + adj.T + torch.eye(n)) > 0).float()
    return numbers(n, 6), adj, torch.randint(0, 3, (n,)), (torch.arange(n) < 4).float()


@pytest.mark.parametrize("kind, lr", [(GCN, 0.01), (GAT, 0.005)])
def test_graphs(kind, lr):
    model, (x, adj, y, mask) = kind(), graph()
    adj = adj / adj.sum(1, keepdim=True) if kind is GCN else adj
    mine, _ = run("graphs", kind.__name__.lower(), {"x": x[None], "adj": adj[None], "y": y[None], "mask": mask[None]}, {"model": model})
    close(mine, learn(model, torch.optim.Adam(model.parameters(), lr, weight_decay=5e-4), lambda: F.nll_loss(model(x, adj)[mask > 0], y[mask > 0])))


def test_graph_attention_by_edges():
    """On the list of edges as on the matrix of all pairs."""
    import engram as eg
    _, adj, _, _ = graph()
    v, a = numbers(7, 5), numbers(10)
    to, source = adj.nonzero(as_tuple=True)
    e = F.leaky_relu((v @ a[:5])[:, None] + (v @ a[5:])[None], 0.2)
    want = F.softmax(torch.where(adj > 0, e, -9e16 * torch.ones_like(e)), dim=-1) @ v
    p = eg.compile(FOLDER / "graphs.nn")
    np.testing.assert_allclose(p.edge_attention(v.numpy(), source.numpy(), to.numpy(), a.numpy()), want.numpy(), rtol=1e-4, atol=1e-5)


# ---- reinforcement learning ----------------------------------------------------------------------------------------------

class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.affine1, self.affine2 = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return F.softmax(self.affine2(F.relu(self.affine1(x))), dim=1)


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.affine1, self.action_head, self.value_head = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 1)

    def forward(self, x):
        x = F.relu(self.affine1(x))
        return F.softmax(self.action_head(x), dim=-1), self.value_head(x)[:, 0]


@pytest.mark.parametrize("kind", [Policy, ActorCritic])
def test_reinforcement_learning(kind):
    model, x, action, reward = kind(), numbers(10, 4), torch.randint(0, 2, (10,)), numbers(10, low=0, high=2)
    R, returns = 0.0, []
    for r in reward.flip(0):
        R = r + 0.99 * R
        returns.insert(0, R)
    returns = torch.stack(returns)
    returns = (returns - returns.mean()) / (returns.std() + 1e-8)

    def reinforce():
        return (-torch.distributions.Categorical(model(x)).log_prob(action) * returns).sum()

    def actor_critic():
        probs, value = model(x)
        advantage = returns - value.detach()
        return (-torch.distributions.Categorical(probs).log_prob(action) * advantage).sum() + F.smooth_l1_loss(value, returns, reduction="sum")
    block, loss, lr = ("reinforce", reinforce, 1e-2) if kind is Policy else ("actor_critic", actor_critic, 3e-2)
    t, data = trainer("reinforce", block, {"x": x, "action": action, "reward": reward}, {"model": model})
    mine = t.run(data.fields, shuffle=False, final=False).first_losses           # an episode has an order
    close(np.array(mine[:STEPS]), learn(model, torch.optim.Adam(model.parameters(), lr), loss))
