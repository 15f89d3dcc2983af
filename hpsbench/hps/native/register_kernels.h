// Which types the operations' kernels are registered for, on every device.
#ifndef HPSBENCH_HPS_NATIVE_REGISTER_KERNELS_H_
#define HPSBENCH_HPS_NATIVE_REGISTER_KERNELS_H_

#include <cstdint>

#include "Eigen/Core"
#include "tensorflow/core/framework/op_kernel.h"

// int32 ids come in host memory on GPUs too: TensorFlow has int32 arguments of functions there, as a
// request's ids are, and the kernels bring them to the GPU faster than its copies do. Ids that the
// GPU computed are copied back before.
#define HPS_REGISTER_LOOKUP_OF_ROWS(operation, device, Kernel, Row) \
  REGISTER_KERNEL_BUILDER(Name(operation)                           \
                              .Device(device)                       \
                              .TypeConstraint<int32_t>("Tkeys")     \
                              .TypeConstraint<Row>("Trows")         \
                              .HostMemory("ids"),                   \
                          Kernel<int32_t, Row>);                    \
  REGISTER_KERNEL_BUILDER(Name(operation)                           \
                              .Device(device)                       \
                              .TypeConstraint<int64_t>("Tkeys")     \
                              .TypeConstraint<Row>("Trows"),        \
                          Kernel<int64_t, Row>)

// Registers the class template Kernel<Key, Row> for HpsLookup and HpsMultiLookup.
#define HPS_REGISTER_LOOKUPS(device, Kernel)                                   \
  HPS_REGISTER_LOOKUP_OF_ROWS("HpsLookup", device, Kernel, float);             \
  HPS_REGISTER_LOOKUP_OF_ROWS("HpsLookup", device, Kernel, Eigen::half);       \
  HPS_REGISTER_LOOKUP_OF_ROWS("HpsMultiLookup", device, Kernel, float);        \
  HPS_REGISTER_LOOKUP_OF_ROWS("HpsMultiLookup", device, Kernel, Eigen::half)

// Registers the class template Kernel<Key> for HpsConcatLookup.
#define HPS_REGISTER_CONCAT_LOOKUPS(device, Kernel)                                         \
  REGISTER_KERNEL_BUILDER(Name("HpsConcatLookup")                                           \
                              .Device(device)                                               \
                              .TypeConstraint<int32_t>("Tkeys")                             \
                              .HostMemory("ids"),                                           \
                          Kernel<int32_t>);                                                 \
  REGISTER_KERNEL_BUILDER(                                                                  \
      Name("HpsConcatLookup").Device(device).TypeConstraint<int64_t>("Tkeys"), Kernel<int64_t>)

#endif  // HPSBENCH_HPS_NATIVE_REGISTER_KERNELS_H_
