"""What people do with the students of a class, as jobs: one op each, answering in the run's metadata."""

from pydantic import BaseModel

from pipelines.jobs.operations import build_operation_job
from pipelines.services.context import ServiceContext
from pipelines.services.decisions import DecisionService
from pipelines.services.operations import Operation
from pipelines.services.students import (
    ImportStudents,
    ListStudents,
    MergeStudents,
    RenameStudent,
    StudentService,
    read_roster,
)

# Who has decided what a job was launched for: Dagster does not know who that was.
DECIDED_BY = "dagster"


def _list(context: ServiceContext, p: ListStudents, run_id: str | None) -> BaseModel:
    return StudentService(DECIDED_BY, run_id, context=context).list(p.class_name)


def _rename(context: ServiceContext, p: RenameStudent, run_id: str | None) -> BaseModel:
    return DecisionService(DECIDED_BY, run_id, context=context).rename(p.student_id, p.name, p.reason)


def _merge(context: ServiceContext, p: MergeStudents, run_id: str | None) -> BaseModel:
    return DecisionService(DECIDED_BY, run_id, context=context).merge(p.student_id, p.into_student_id, p.reason)


def _import(context: ServiceContext, p: ImportStudents, run_id: str | None) -> BaseModel:
    service = StudentService(DECIDED_BY, run_id, context=context)
    return service.import_csv(p.class_name, read_roster(p.path), p.create_class)


STUDENT_JOBS = {
    operation.name: build_operation_job(operation)
    for operation in (
        Operation("list_students", "The students of a class, named and provisional.", ListStudents, _list),
        Operation("rename_student", "Give a student a name; they are no longer provisional.", RenameStudent, _rename),
        Operation(
            "merge_students",
            "Say that two students are one; the name that a person gave survives.",
            MergeStudents,
            _merge,
        ),
        Operation(
            "import_students",
            "Add a roster's students to a class and bring known ones up to date; a report of every row.",
            ImportStudents,
            _import,
        ),
    )
}
