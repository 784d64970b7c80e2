from tests.process_kit import bench, bystander
from tests.unit.processes.grouped import grouped

__all__ = ["bench", "bystander", "grouped"]
