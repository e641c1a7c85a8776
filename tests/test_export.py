"The functional core leaves torch: a step with the state as input and output, by `torch.export` and as ONNX."
import numpy as np
import onnxruntime
import pytest
import torch
from torch.testing import assert_close

from rnn_fastai.models.awd import get_language_model
from rnn_fastai.models.state import map_state

ARCHS = 'AWD_LSTM', 'AWD_GRU', 'AWD_RNN', 'AWD_QRNN', 'AWD_minGRU', 'AWD_LayerNormLSTM'

def flat(state) -> list:
    "Tensors of a nest, in order."
    found = []
    map_state(found.append, state)
    return found

@pytest.fixture(params=ARCHS)
def model(request):
    torch.manual_seed(0)
    model = get_language_model(request.param, 50, dict(emb_sz=16, n_hid=24, n_layers=2)).eval()
    for p in model.parameters(): p.data.mul_(2)
    return model

@torch.no_grad()
def example(model, bs):
    return torch.randint(50, (bs, 1)),model(torch.randint(50, (bs, 5))).state

def dims(state):
    bs = torch.export.Dim('bs')
    return {0: bs},map_state(lambda s: {1: bs}, state)

@torch.no_grad()
def test_exported_step_for_any_batch(model):
    ids,state = example(model, 2)
    step = torch.export.export(model, (ids, state), dynamic_shapes=dims(state)).module()
    for bs in (2, 7, 31):
        ids,state = example(model, bs)
        got,want = step(ids, state),model(ids, state)
        assert_close(got.logits, want.logits)
        for a,b in zip(flat(got.state), flat(want.state), strict=True): assert_close(a, b)

@torch.no_grad()
@pytest.mark.filterwarnings('ignore')
def test_onnx_writes_the_same_text(model, tmp_path):
    ids,state = example(model, 2)
    torch.onnx.export(model, (ids, state), tmp_path/'step.onnx', dynamo=True, dynamic_shapes=dims(state), verbose=False)
    session = onnxruntime.InferenceSession(tmp_path/'step.onnx')
    names = [i.name for i in session.get_inputs()]
    ids,state = example(model, 3)
    values,n = [t.numpy() for t in flat(state)],len(flat(state))
    for _ in range(20):
        logits,*rest = session.run(None, dict(zip(names, [ids.numpy(), *values], strict=True)))
        out = model(ids, state)
        np.testing.assert_allclose(logits, out.logits.numpy(), rtol=1e-3, atol=1e-3)
        ids,state,values = out.logits[:, -1:].argmax(-1),out.state,rest[-n:]
        assert (logits[:, -1:].argmax(-1) == ids.numpy()).all()
