"""What `GpuLookup` says where no GPU caches the tables."""

import numpy as np
import pytest

from hpsbench.errors import HpsError
from hpsbench.hps.configuration import Configuration, ModelConfiguration, write_configuration
from hpsbench.hps.gpu_lookup import GpuLookup
from hpsbench.hps.lookup import open_model
from hpsbench.hps.sparse_model import write_sparse_model


def test_a_model_without_a_cache_is_refused_and_answers_from_the_host(tmp_path):
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_sparse_model(tmp_path / "t", np.arange(3), [rows])
    model = ModelConfiguration(
        model="m",
        sparse_files=(str(tmp_path / "t"),),
        embedding_vecsize_per_table=(4,),
        maxnum_catfeature_query_per_table_per_sample=(1,),
        default_value_for_each_table=(0.0,),
        deployed_device_list=(0,),
        gpucache=False,
    )
    path = write_configuration(tmp_path / "ps.json", Configuration(models=(model,)))
    tables = open_model(path, "m", gpus=True)
    with pytest.raises(HpsError, match="model m has no cache on GPU 0; it has on none") as refused:
        GpuLookup(tables)
    assert "set gpucache and deployed_device_list" in refused.value.hint
    np.testing.assert_array_equal(tables.lookup(0, np.array([2, 0])), rows[[2, 0]])
