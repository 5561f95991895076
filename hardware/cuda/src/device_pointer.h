// A device address: a pointer for the kernels, a number for the host.
#ifndef TRIVIUM_DEVICE_POINTER_H
#define TRIVIUM_DEVICE_POINTER_H

#ifdef __CUDACC_RTC__
#define DEVICE(type) type*
#else
#define DEVICE(type) unsigned long long
#endif

#endif
