from .csv_logs import CSVLogger as CSVLogger
from .logger import Logger as Logger
from .mlflow import MLFlowLogger as MLFlowLogger
from .tensorboard import TensorBoardLogger as TensorBoardLogger
from .wandb import WandbLogger as WandbLogger
