"Everything that `from fastai.text.all import *` gives, with this package's classes in place of fastai's, and its own."
from fastai.text.all import *

from rnn_fastai.callback.history import *
from rnn_fastai.callback.regularize import *
from rnn_fastai.callback.state import *
from rnn_fastai.core import *
from rnn_fastai.data.corpus import *
from rnn_fastai.data.lm import *
from rnn_fastai.data.loaders import *
from rnn_fastai.data.series import *
from rnn_fastai.data.sets import *
from rnn_fastai.data.tokenize import *
from rnn_fastai.generate import *
from rnn_fastai.learner import *
from rnn_fastai.many import *
from rnn_fastai.models.cells import *
from rnn_fastai.models.dropout import *
from rnn_fastai.models.heads import *
from rnn_fastai.models.recurrent import *
from rnn_fastai.models.zoo import *
from rnn_fastai.nets import *
from rnn_fastai.optim import *
from rnn_fastai.plots import *
from rnn_fastai.transfer import *
