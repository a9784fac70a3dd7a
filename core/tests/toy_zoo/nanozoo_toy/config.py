from nanozoo_core.config.control import ControlConfig as Config

__all__ = ["Config"]
