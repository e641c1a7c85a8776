"The command, by `python -m rnn_fastai`."
from rnn_fastai.cli.entry import main

if __name__ == "__main__": main()
