from tests.process_kit import bench, bystander

__all__ = ["bench", "bystander"]
