"""Counts and sums of every Delta table under a folder, by one reader, as JSON; and the comparison of two such answers.

    check.py deltalake LAKE        the `deltalake` package from PyPI
    check.py spark LAKE            Spark with delta-spark, the reference implementation (jars: $DELTA_JARS, parted by commas)
    check.py compare A.json B.json prints one line a table; exit 1 unless they agree

A column's sum is exact: whole numbers for decimals in their smallest unit, microseconds for timestamps, days for dates,
lengths for text and bytes, ones for true. Columns of other types are compared by how many are null.
"""

import json
import os
import sys
from pathlib import Path


def tables(lake: str) -> dict[str, str]:
    root = Path(lake).resolve()
    logs = sorted(root.glob("**/_delta_log"))
    return {str(log.parent.relative_to(root)): str(log.parent) for log in logs}


def by_deltalake(lake: str) -> dict:
    import pyarrow as pa
    import pyarrow.compute as pc
    from deltalake import DeltaTable

    def total(column):
        kind = column.type
        if pa.types.is_decimal(kind):
            return sum(int(v.scaleb(kind.scale)) for v in column.drop_null().to_pylist())
        if pa.types.is_integer(kind):
            return pc.sum(column.cast(pa.int64())).as_py()
        if pa.types.is_boolean(kind):
            return pc.sum(column.cast(pa.int64())).as_py()
        if pa.types.is_timestamp(kind):
            return sum(column.drop_null().cast(pa.timestamp("us", kind.tz)).cast(pa.int64()).to_pylist())
        if pa.types.is_date32(kind):
            return pc.sum(column.cast(pa.int32()).cast(pa.int64())).as_py()
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return pc.sum(pc.utf8_length(column.cast(pa.large_string())).cast(pa.int64())).as_py()
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
            return pc.sum(pc.binary_length(column.cast(pa.large_binary())).cast(pa.int64())).as_py()
        return None

    answer = {}
    for name, path in tables(lake).items():
        table = DeltaTable(path)
        rows = pa.table(table.to_pyarrow_table())
        columns = {c: {"nulls": rows[c].null_count, "sum": total(rows[c]) or 0} for c in rows.column_names}
        answer[name] = {"version": table.version(), "rows": rows.num_rows, "columns": columns}
    return answer


def by_spark(lake: str) -> dict:
    from pyspark.sql import SparkSession, functions as f, types as t

    spark = (
        SparkSession.builder.master("local[2]")
        .appName("tidegate cross-check")
        .config("spark.jars", os.environ["DELTA_JARS"])
        .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
        .config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.driver.memory", "1g")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.databricks.delta.snapshotPartitions", "2")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    wide = t.DecimalType(38, 0)

    def total(name, kind):
        column = f.col(f"`{name}`")
        if isinstance(kind, t.DecimalType):
            return f.sum((column * f.lit(10**kind.scale)).cast(wide))
        if isinstance(kind, (t.ByteType, t.ShortType, t.IntegerType, t.LongType, t.BooleanType)):
            return f.sum(column.cast("long").cast(wide))
        if isinstance(kind, t.TimestampType):
            return f.sum(f.unix_micros(column).cast(wide))
        if isinstance(kind, t.DateType):
            return f.sum(f.unix_date(column).cast(wide))
        if isinstance(kind, (t.StringType, t.BinaryType)):
            return f.sum(f.length(column).cast(wide))
        return f.lit(0)

    answer = {}
    for name, path in tables(lake).items():
        rows = spark.read.format("delta").load(path)
        asked = [f.count(f.lit(1))]
        for field in rows.schema.fields:
            asked.append(f.sum(f.col(f"`{field.name}`").isNull().cast("long")))
            asked.append(total(field.name, field.dataType))
        count, *found = rows.agg(*asked).first()
        pairs = zip(rows.columns, found[::2], found[1::2])
        columns = {c: {"nulls": nulls or 0, "sum": int(total or 0)} for c, nulls, total in pairs}
        version = spark.sql(f"DESCRIBE HISTORY delta.`{path}` LIMIT 1").first()["version"]
        answer[name] = {"version": version, "rows": count, "columns": columns}
    spark.stop()
    return answer


def compare(left: str, right: str) -> int:
    a, b = (json.loads(Path(file).read_text()) for file in (left, right))
    if not a:
        print("cross-check: no tables found")
        return 1
    differences = 0
    for name in sorted(a.keys() | b.keys()):
        one, other = a.get(name), b.get(name)
        if one == other:
            print(f"{name}: version {one['version']}, {one['rows']} rows, {len(one['columns'])} columns: the same in both")
            continue
        differences += 1
        print(f"{name}: DIFFERENT")
        if one is None or other is None:
            print("  only one reader found it")
            continue
        for key in ("version", "rows"):
            if one[key] != other[key]:
                print(f"  {key}: {one[key]} != {other[key]}")
        for column in sorted(one["columns"].keys() | other["columns"].keys()):
            x, y = one["columns"].get(column), other["columns"].get(column)
            if x != y:
                print(f"  {column}: {x} != {y}")
    print(f"{len(a.keys() | b.keys()) - differences} passed, {differences} failed")
    return 1 if differences else 0


def main() -> int:
    match sys.argv[1:]:
        case ["deltalake", lake]:
            print(json.dumps(by_deltalake(lake), indent=1, sort_keys=True))
        case ["spark", lake]:
            print(json.dumps(by_spark(lake), indent=1, sort_keys=True))
        case ["compare", left, right]:
            return compare(left, right)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
