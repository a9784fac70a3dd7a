from nanozoo_core.nn.control import ControlModel as Model

__all__ = ["Model"]
