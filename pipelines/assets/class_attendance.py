"""A class's register: students by sessions."""

import dagster as dg

from pipelines.assets.common import for_each_partition, lineage_asset, model_asset
from pipelines.partitions import classes
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.services.attendance import AttendanceService


def build_class_attendance(spec: ModelSpec) -> dg.AssetsDefinition:
    """`<model>/class_attendance`."""

    @lineage_asset(
        spec,
        "class_attendance",
        # For lineage only: the class attendance sensor requests the runs. An eager condition would wait for every
        # session of every class and start all classes whenever one session changes.
        deps=[
            dg.AssetDep(model_asset(spec, "session_attendance"), partition_mapping=dg.AllPartitionMapping()),
        ],
        partitions_def=classes,
        kinds={"python", "postgres"},
        description="The class's register over all its sessions, as a table.",
    )
    def class_attendance(context: dg.AssetExecutionContext, database: Database) -> dg.MaterializeResult:
        service = AttendanceService(database, spec.name)

        def register(class_name: str) -> dict[str, object]:
            register = service.register(class_name)
            columns = ["student", *register.sessions]
            return {
                "model": spec.name,
                "students": len(register.students),
                "sessions": len(register.sessions),
                "unknown": len(register.unknown),
                "register": dg.MetadataValue.table(
                    [dg.TableRecord(dict(zip(columns, row, strict=True))) for row in register.rows()],
                    schema=dg.TableSchema([dg.TableColumn(column) for column in columns]),
                ),
            }

        return for_each_partition(context, register)

    return class_attendance
